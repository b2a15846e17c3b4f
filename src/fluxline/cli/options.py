"""What `fluxline generate` can be told: a field an option, declared once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

from typer import Argument, Option

from fluxline.ability import STRENGTH
from fluxline.cli.delivery import Seen
from fluxline.request import MemoryName, PrecisionName


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As they were typed, or as they are if nothing is; nobody has looked at what they say."""

    prompt: Annotated[str | None, Argument(help="what to draw; - reads it from standard input")] = (
        None
    )
    output: Annotated[
        Path | None, Option("--output", "-o", help="file to write; its ending is the format")
    ] = None
    n: Annotated[int, Option("-n", min=1, max=1024, help="pictures")] = 1
    top_k: Annotated[
        int | None, Option(min=1, help="keep so many of them, the best by --scorer")
    ] = None
    scorer: Annotated[
        str | None,
        Option(help="a CLIP folder or hub id, or technical; the model's own if absent"),
    ] = None
    seed: Annotated[int | None, Option(help="of the first picture; random if absent")] = None
    size: Annotated[str | None, Option(help="WIDTHxHEIGHT; the model's own if absent")] = None
    steps: Annotated[int | None, Option(help="the model's own if absent")] = None
    guidance: Annotated[float | None, Option(help="distilled, for dev-class models")] = None
    sampler: Annotated[str, Option()] = "euler"
    schedule: Annotated[str, Option()] = "simple"
    cfg_scale: Annotated[
        float | None,
        Option(help="true guidance, above 1 twice the work; the model's own if absent"),
    ] = None
    negative_prompt: Annotated[str, Option(help="acts with --cfg-scale above 1")] = ""
    eta: Annotated[float, Option(help="noise of ddim, 0 to 1")] = 0.0
    image: Annotated[
        Path | None, Option("--image", help="a picture to draw on; the size follows its shape")
    ] = None
    strength: Annotated[
        float | None,
        Option(
            help=f"how much of --image is drawn anew, to 1; {STRENGTH} if absent, with --mask 1"
        ),
    ] = None
    mask: Annotated[
        Path | None,
        Option(help="a picture that says what of --image is: transparent, or else white"),
    ] = None
    expand: Annotated[
        str | None, Option(help="LEFT,TOP,RIGHT,BOTTOM: px to draw beside --image")
    ] = None
    reference: Annotated[
        list[Path] | None,
        Option(help="a picture to look at, for models that do; may be given again"),
    ] = None
    loras: Annotated[
        list[str] | None,
        Option("--lora", help="NAME[:STRENGTH], a file, a folder or a hub id; repeatable"),
    ] = None
    model: Annotated[str, Option(help="a name, a folder, a file or a hub id")] = "mini"
    device: Annotated[str, Option(help="auto | cuda | mps | cpu")] = "auto"
    precision: Annotated[
        str, Option(help=f"how weights are held: {' | '.join(get_args(PrecisionName))}")
    ] = "auto"
    memory: Annotated[
        str, Option(help=f"where weights lie: {' | '.join(get_args(MemoryName))}")
    ] = "auto"
    parallel: Annotated[
        list[str] | None,
        Option(
            help="ranks that draw each picture together: ulysses=2, ring=2, cfg=2, tensor=2 or "
            "several of them with commas between, or stages=2; auto: what is best for the cards "
            "here; beside it, or with torchrun: piflux, distrifusion or pipefusion, not quite exact"
        ),
    ] = None
    again: Annotated[
        Path | None,
        Option("--from", help="a picture of ours, to make again; flags beside override its recipe"),
    ] = None
    show: Annotated[bool, Option(help="show the picture in the terminal")] = True
    print_: Annotated[
        bool, Option("--print", help="show it where the output is no terminal, too")
    ] = False

    @property
    def seen(self) -> Seen:
        """Where pictures are shown beside their files' names."""
        return "always" if self.print_ else "in a terminal" if self.show else "never"
