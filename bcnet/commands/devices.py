"""`bcnet devices` and `bcnet doctor`: which devices there are, and whether one can be measured."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Annotated

import typer

from bcnet.commands.completion import device_names
from bcnet.commands.options import Given, Json, with_settings
from bcnet.show import show_costs, show_fields, show_steps, show_table


def devices(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Show this one with all its fields.", autocompletion=device_names
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the hardware profiles. Shows those shipped and your own in hw_profiles/; with a name, all fields
    of one."""
    from bcnet.hw_profiles import load_profile, load_profiles, profile_file

    if name is not None:
        profile = load_profile(name)
        found = {"file": str(profile_file(name)), **profile.model_dump(mode="json")}
        if as_json:
            print(json.dumps(found))
        else:
            show_fields({key: value for key, value in found.items() if value is not None})
        return
    profiles, broken = load_profiles()
    if as_json:
        errors = {name: {"error": reason} for name, reason in broken.items()}
        print(
            json.dumps(
                {**{name: profile.model_dump(mode="json") for name, profile in profiles.items()}, **errors}
            )
        )
        return
    rows = [
        [
            " ".join([name, *(f"({alias})" for alias in p.aliases)]),
            p.setting[0],
            p.precision,
            p.description,
        ]
        for name, p in profiles.items()
    ]
    rows += [[name, *[""] * 2, f"cannot be used: {reason}"] for name, reason in broken.items()]
    show_table(["device", "runtime", "precision", "description"], rows)


@with_settings("device", "host")
def doctor(
    given: Given,
    cost: Annotated[
        bool,
        typer.Option("--cost", help="Also estimate the time and memory of each stage, from short trials."),
    ] = False,
    as_json: Json = False,
) -> int:
    """Check whether the device can be measured. Tests the connection, the runtime and the machine step by
    step, over ssh with --host, and says how to fix what fails. Exit code 3 when a step fails. With --cost, it
    estimates what this configuration takes on this machine, stage by stage, from trials of some seconds."""
    from bcnet.doctor import examine
    from bcnet.hw_profiles.target import target_profile

    config = given.config()
    profile = target_profile(config)
    found = examine(profile)
    # `mend` is the former name of `fix`.
    steps = [{**asdict(step), "mend": step.fix} for step in found]
    report: dict[str, object] = {"device": profile.name, "steps": steps}
    if not as_json:
        show_steps(found)
    if cost:
        from bcnet.pipeline.cost import costs
        from bcnet.pipeline.open_problem import open_problem
        from bcnet.progress import working

        with redirect_stdout(sys.stderr), working("trying what the stages do"):
            stages = costs(open_problem(config))
        report["cost"] = [asdict(own) for own in stages]
        if not as_json:
            show_costs(stages)
    if as_json:
        print(json.dumps(report))
    return 0 if all(step.passed is not False for step in found) else 3
