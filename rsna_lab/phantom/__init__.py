"""The embedded synthetic competition: anatomy, acquisition, the competition writer."""
