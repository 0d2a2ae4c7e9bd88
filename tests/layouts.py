"""One data set in every layout that people have, written by other people's tools, and what packs and opens it."""

import io
import json
import tarfile

from PIL import Image

from deit_fast.cli import main
from deit_fast.config import DataConfig
from deit_fast.dali_pipelines.image_folder import scan_image_folder
from deit_fast.open_images import open_images
from deit_fast.packing.pack import PackOptions, join_parts, pack_split
from deit_fast.packing.pack_source import FolderSource

WNIDS = ("n01440764", "n01443537", "n02105855")


def data(*arguments):
    """`deit-fast data ...`: the exit code."""
    return main(["data", *map(str, arguments)])


def pack(source, output, *arguments):
    """`deit-fast data pack`, by one worker."""
    assert data("pack", "--input", source, "--output", output, "--workers", 1, *arguments) == 0


def opened(path, split="train"):
    """The images that `data.path` names."""
    return open_images(DataConfig(path=str(path)), split)


def encode(image, form="JPEG", **options):
    """The bytes of a Pillow image in a format."""
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def small_jpegs(count, size=(48, 40)):
    """Different small JPEGs."""
    colours = [(37 * i % 256, 91 * i % 256, 151 * i % 256) for i in range(count)]
    return [encode(Image.linear_gradient("L").resize(size).convert("RGB").point(_times(c))) for c in colours]


def _times(colour):
    return [value * level // 255 for value in colour for level in range(256)]


def add(tar, name, content):
    """A member of a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def pack_folder(root, output, splits=("train", "val"), images_per_shard=20):
    """`data pack` of an ImageFolder, in this process."""
    options = PackOptions(images_per_shard=images_per_shard)
    for split in splits:
        source = FolderSource(scan_image_folder(root / split))
        list(pack_split(source, output, split, options, part=(1, 1), workers=1))
        assert join_parts(source, output, split, options) == []
    return output


def write_imagenet_train_tar(path, images_of):
    """ILSVRC2012_img_train.tar: a tar for each wnid."""
    with tarfile.open(path, "w") as outer:
        for wnid, images in images_of.items():
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for name, content in images.items():
                    add(tar, name, content)
            add(outer, f"{wnid}.tar", inner.getvalue())


def write_devkit(path, wnids, truth):
    """ILSVRC2012_devkit_t12.tar.gz with a table of synsets as MATLAB writes it; truth: ILSVRC2012_ID of each image."""
    import numpy as np
    from scipy.io import savemat

    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, wnid, f"name of {wnid}", "gloss", 0) for number, wnid in enumerate(wnids, 1)]
    rows.append((len(wnids) + 1, "n00000000", "an inner node", "gloss", len(wnids)))
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kind)[:, None]})
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        text = "".join(f"{number}\n" for number in truth).encode()
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", text)


def write_parquet(path, rows, class_names, row_group_size=4):
    """Hugging Face's file: rows of (bytes, path, label), the names of the classes in the schema's metadata."""
    import pyarrow
    from pyarrow import parquet

    label = {"names": class_names, "_type": "ClassLabel"}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", image), ("label", pyarrow.int64())], {"huggingface": json.dumps(info)})
    columns = [[{"bytes": content, "path": name} for content, name, _ in rows], [label for *_, label in rows]]
    table = pyarrow.table(columns, schema=schema)
    parquet.write_table(table, path, row_group_size=row_group_size)
