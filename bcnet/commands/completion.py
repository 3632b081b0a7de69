"""What the shell completes: devices, runs, settings. In: the beginning of a word. Out: what it may be."""

from collections.abc import Callable, Sequence


def one_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Completes the values of a setting that takes only these."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def device_names(incomplete: str) -> list[str]:
    """Names and aliases of hardware profiles."""
    from bcnet.hw_profiles import known_names

    return [name for name in known_names() if name.startswith(incomplete)]


def run_names(incomplete: str) -> list[str]:
    """Names of the runs in the working folder."""
    from bcnet.runs import RUNS

    folders = RUNS.iterdir() if RUNS.is_dir() else ()
    return sorted(folder.name for folder in folders if folder.name.startswith(incomplete))


def setting_names(incomplete: str) -> list[str]:
    """Settings by their dotted names, each with `=` after it."""
    from bcnet.config import settings

    return [f"{key}=" for key in settings() if key.startswith(incomplete)]
