"""Options that several commands share."""

from pathlib import Path

import click

PARAMS_OPTIONS = (
    click.Option(
        ["--params", "params_file"],
        type=click.Path(path_type=Path),
        default=Path("params.yaml"),
        show_default=True,
        metavar="FILE",
        help="Parameter file.",
    ),
    click.Option(
        ["-S", "--set", "overrides"],
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Change a parameter for this command; may be repeated. Text is taken as it is typed;"
        " nothing after the = is null.",
    ),
)

names_option = click.option(
    "--names",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Names of the clusters, as `vitdc explore` writes them; by default RESULTS"
    ".annotations.json beside the results directory, if it is there.",
)

# a finished run, as `explore.finding.find_run` takes it
results_argument = click.argument(
    "results", type=click.Path(path_type=Path), default=Path("results"), metavar="[RESULTS]"
)

dataset_option = click.option(
    "--dataset",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The images, if they lie neither in dataset/ nor in outputs/dataset/ beside RESULTS.",
)

rounds_option = click.option(
    "--rounds",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory of all rounds, if neither rounds/ nor outputs/rounds/ beside RESULTS.",
)
