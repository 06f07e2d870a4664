from push_world import World
def test_whole(world: World) -> None:
    r = world.does("all")
    print(r.talk, r.value)
    world.site.calls.clear()
    r2 = world.does("all")
    print(r2.talk)
    assert r2.value == r.value
    assert world.site.changes == []
    world.ledger.path.unlink()
    r3 = world.does("all")
    print(r3.talk)
    assert r3.value == r.value
    assert world.site.changes == []
