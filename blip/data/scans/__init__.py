"""Scans: DICOM and NIfTI files, series and volumes, to pictures of 8 bits. Nothing of a header but what is asked for
reaches a message, a log or a file.

`blip.data.images.opened` calls this room wherever an image is opened. Imports `files`, `errors` and, of `data`,
`image_bytes`, `image_files`, `decoding_cost`, `grey_levels` and `reference_options`; pydicom and nibabel, of the extra
`dicom`, are imported where a scan is read. Read `dicom.py` first.

references    PATH#frame=3, VOLUME#axis=coronal&slice=40, SERIES/#slices=16: which pictures of a scan are meant
windows       windows by name and as LEVEL/WIDTH; grey levels to 8 bits
dicom         a frame of a DICOM file as a picture
header pixels codestreams   the header, and what it says about grey levels; decoding of a frame; sizes of JPEG streams
levels        stored values to those of the modality, and to pictures
nifti         slices of NIfTI files, the right way up
series volumes   files of a folder in the order of their positions; slices of all kinds of volumes
libraries     pydicom and nibabel, silenced
facts         what `blip check-data` reports about scans
"""
