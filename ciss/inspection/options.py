"""The commands `ciss predict` and `ciss export`. Imports nothing heavy before one is called."""

from typing import Annotated, Literal

from typer import Argument, Option

from ciss import arguments

FILES = "Folder for the files. Default: predictions/RUN of the project."
EXPORTED = "Folder for the files. Default: exports/RUN of the project."
ONNX = "Whether to write and check model.onnx, which needs the extra `export`."


def predict(
    run: arguments.Run,
    images: Annotated[list[str], Argument(metavar="IMAGE...", help="Pictures, or folders of pictures.")],
    config: arguments.Config = "params.yaml",
    out: Annotated[str | None, Option(metavar="FOLDER", help=FILES)] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], Option(help="auto: a GPU if there is one.")] = "auto",
) -> None:
    """Label pictures with a trained run.

    \b
    ciss predict shapes-s0-mib-2 photo.jpg more/photos

    Each picture gives two files. NAME.png is a palette PNG with raw class ids as in params.yaml. For CamVid,
    Cityscapes and other data where 0 is a class, the raw id is the annotation's number or train id plus 1.
    NAME_overlay.png is the picture with the classes drawn over it and a legend.

    Pictures are first rotated by their EXIF tag; mask and overlay have the rotated size. (Images of data sets are not
    rotated.) Size, scales and flip come from `evaluation` in params.yaml.
    """
    from ciss.inspection import predict as inspection_predict

    inspection_predict.main(run, images, config, out, device)


def export(
    run: arguments.Run,
    config: arguments.Config = "params.yaml",
    out: Annotated[str | None, Option(metavar="FOLDER", help=EXPORTED)] = None,
    onnx: Annotated[bool, Option("--onnx/--no-onnx", help=ONNX)] = True,
) -> None:
    """Write a trained run as a folder for other programs: docs/library.md.

    \b
    ciss export shapes-s0-mib-2             # into exports/shapes-s0-mib-2
    ciss export shapes-s0-mib-2 --no-onnx   # without ONNX

    The folder has model.safetensors, config.json, README.md and model.onnx. ciss.load("FOLDER") opens it in Python.
    model.onnx labels pictures of any size, as ciss predict does. Its labels are compared with those of the network
    in onnxruntime, and the share of other labels is printed.
    """
    from ciss.inspection import export as inspection_export

    inspection_export.main(run, config, out, onnx)
