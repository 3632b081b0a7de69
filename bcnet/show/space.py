"""Print a width space: its groups, what is frozen, and how much of the network can be searched."""

from typing import TYPE_CHECKING

from bcnet.show.tables import put, show_table

if TYPE_CHECKING:
    from bcnet.space.width_space import WidthSpace


def show_space(space: "WidthSpace", shape: tuple[int, ...], origin: str) -> None:
    """Print the space of a network whose input has this shape; `origin` says where the shape comes from."""
    full, small = space.original(), space.smallest()
    rows = [
        [
            g.name,
            (str(g.channels) if width == g.channels else f"{width}, widened to {g.channels}")
            + (f" (x {g.repeat})" if g.repeat > 1 else ""),
            " ".join(map(str, g.choices)) + (f" (in units of {g.unit})" if g.unit > 1 else ""),
            ", ".join(g.layers),
        ]
        for g, width in zip(space.groups, full, strict=True)
    ]
    show_table(["group", "channels", "choices", "layers"], rows)
    show_table(["frozen", "channels", "reason"], [[f.name, str(f.channels), f.reason] for f in space.frozen])
    put(
        f"input     {' x '.join(map(str, shape))} ({origin})",
        f"full      {space.params(full):>13,} parameters {space.macs(full):>16,} multiply-accumulates",
        f"narrowest {space.params(small):>13,} parameters {space.macs(small):>16,} multiply-accumulates",
        f"searchable {space.searchable_params():>11.1%} of parameters "
        f"{space.searchable_macs():>14.1%} of multiply-accumulates",
        f"narrowest {space.params(small) / space.params(full):>12.1%} of parameters "
        f"{space.macs(small) / space.macs(full):>14.1%} of multiply-accumulates",
    )
    ordered = [g.name for g in space.groups if g.ordered]
    if ordered:
        put(f"channels keep their order (a layer depends on their positions): {', '.join(ordered)}")
