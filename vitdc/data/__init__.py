"""The `prepare` step's sources: from wherever the images are to one prepared Dataset.

    preparing   write_dataset: opens a source, streams its batches into the artifact
    sources     what a source is
    arrays      sources that come as arrays: scikit-learn's digits, torchvision sets by name
    files       sources that come as image files: labels from the layout, split, decoding
    folder, s3  where image files can lie
    decoding    bytes of one image file -> pixels, over all cores
    sampling    stratified, seeded split and subset
    statistics  mean, standard deviation and content hash, streaming

Heavy libraries (Pillow, scikit-learn, torchvision, boto3) are imported where they are used.
"""

from vitdc.data.preparing import write_dataset

__all__ = ["write_dataset"]
