"""From mammogram DICOMs to a scored submission of the RSNA screening mammography competition."""

__version__ = "0.1.0"
