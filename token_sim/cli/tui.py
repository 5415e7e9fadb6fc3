"""The token in the terminal: its case, its display, its button, and a pane with its hidden state.

Rules:
- The app contains no logic of the token: it calls the runner's step, draws the token, and forwards presses.
- `plain` describes the token's state in one line of text.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

from rich.markup import escape
from rich.table import Table
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.geometry import Size
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Footer, OptionList, Static
from textual.widgets.option_list import Option

from token_sim.device import seven_segment
from token_sim.device.faults import DESCRIPTIONS
from token_sim.device.states import State
from token_sim.run.loop import Runner
from token_sim.run.simulation import Simulation, show_time
from token_sim.run.wall_time import show_span

FRAME_S = 1 / 30
WIDE = 112  # columns: the minimum width for the details beside the token
LOG_SHOWN = 100  # lines
BAR = 10  # cells
LEAST = Size(58, 17)  # columns and lines for the case, the line of text and the keys
NAME = 2 + max(map(len, DESCRIPTIONS))  # columns of a fault's mark and name
GLASS, SHADE, INK = "#b9c4a5", "#a9b496", "#1c2418"


class Button(Static):
    """The token's button, which is down while the mouse button is down."""

    class Moved(Message):
        def __init__(self, *, down: bool) -> None:
            super().__init__()
            self.down = down

    def on_mouse_down(self, _: events.MouseDown) -> None:
        self.capture_mouse()
        self.post_message(self.Moved(down=True))

    def on_mouse_up(self, _: events.MouseUp) -> None:
        self.release_mouse()
        self.post_message(self.Moved(down=False))


class FaultMenu(ModalScreen[str | None]):
    """A menu of faults, which marks the faults of the token. Its result is the name of the chosen fault, or None."""

    CSS = """
    FaultMenu { align: center middle; }
    #faults { width: 76; max-width: 100%; height: 20; max-height: 100%; border: round $error; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f,q", "dismiss", "Back", priority=True)]

    def __init__(self, present: set[str]) -> None:
        super().__init__()
        self._present = present

    def compose(self) -> ComposeResult:
        marks = {name: "●" if name in self._present else " " for name in DESCRIPTIONS}
        options = (Option(_hanging(f"{marks[name]} {name}", what), str(name)) for name, what in DESCRIPTIONS.items())
        menu = OptionList(*options, id="faults")  # textual 1.0 has no argument `markup`
        menu.border_title = "faults (● present)"
        menu.border_subtitle = "Enter: inject or clear · Esc: back"
        yield menu

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)


class TokenApp(App[None]):
    """The app of one token, driven by `runner`, with ports at `urls`.

    The app exits when `is_stopped` returns True, or when the user quits.
    """

    TITLE = "token-sim"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012  # the base class declares it without ClassVar
    CSS = f"""
    Screen {{ background: $background; }}
    #table {{ height: 1fr; align: center middle; }}
    .-narrow #table {{ layout: vertical; }}
    .-wide #table {{ layout: horizontal; }}
    #case {{ width: 58; height: 15; border: round #7d8894; background: #2f3740; color: #d7dde3; padding: 0 2; }}
    #brand {{ text-align: center; text-style: bold; }}
    #lcd {{ width: 50; height: 7; margin: 0 1; padding: 1 1; background: {GLASS}; color: {INK}; }}
    #bars {{ height: 1; margin: 0 1; }}
    #button {{ width: 16; height: 3; margin: 0 18; content-align: center middle; background: #c8553d; color: white;
              border: none; text-style: bold; }}
    #button.down {{ background: #8f3524; }}
    #back {{ height: 11; padding: 1 4; }}
    #small {{ display: none; height: 1fr; }}
    .too-small #small {{ display: block; }}
    .too-small #table, .too-small #plain {{ display: none; }}
    #plain {{ height: 1; width: 100%; text-align: center; color: $text-muted; }}
    #details {{ border: round $primary; padding: 0 1; }}
    .-narrow #details {{ height: 1fr; min-height: 5; width: 100%; }}
    .-wide #details {{ width: 1fr; height: 100%; }}
    .-narrow #case.small {{ height: 10; }}
    .-narrow #case.small #lcd {{ height: 5; padding: 0 1; }}
    .-narrow #case.small #space {{ display: none; }}
    .-narrow #case.small #button {{ height: 1; }}
    .-narrow #case.small #back {{ height: 9; padding: 0 4; }}
    .hidden {{ display: none; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,enter", "press", "Press"),
        Binding("h", "hold", "Hold"),
        Binding("s", "turn", "Turn over"),
        Binding("d", "details", "Details"),
        Binding("u", "unplug", "Unplug"),
        Binding("f", "fault", "Fault"),
        Binding("q,ctrl+c", "quit", "Quit", key_display="q", priority=True),
    ]

    def __init__(self, runner: Runner, urls: list[str], is_stopped: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self._runner, self._urls, self._is_stopped = runner, urls, is_stopped
        self._shown: dict[str, str | Text] = {}
        self._views = {
            name: Static(id=name, markup=False) for name in ("lcd", "bars", "back", "small", "plain", "facts", "log")
        }
        self._button = Button("PRESS", id="button")
        self._case = Vertical(id="case")
        self._pane = VerticalScroll(id="details", classes="hidden")
        self._views["back"].add_class("hidden")
        self._colour = "NO_COLOR" not in os.environ

    @property
    def simulation(self) -> Simulation:
        return self._runner.simulation

    def compose(self) -> ComposeResult:
        with Container(id="table"):
            with self._case:
                yield Static(self.simulation.device.profile.title, id="brand")
                yield self._views["lcd"]
                yield self._views["bars"]
                yield Static(id="space")
                yield self._views["back"]
                yield self._button
            with self._pane:
                yield self._views["facts"]
                yield self._views["log"]
        yield self._views["small"]
        yield self._views["plain"]
        yield Footer()

    def on_mount(self) -> None:
        self._pane.border_title = "details"
        self.set_interval(FRAME_S, self.tick)
        self.tick()

    def tick(self) -> None:
        self._runner.step(0)
        if self._is_stopped():
            self.exit()
            return
        self._show("lcd", self._lcd())
        self._show("bars", self._bars())
        self._show("plain", self.plain())
        self._show("small", self._small())
        self._button.set_class(self.simulation.device.is_button_closed, "down")
        if not self._pane.has_class("hidden"):
            self._show("facts", self._facts())
            self._show("log", "\n".join(list(self.simulation.log)[: -LOG_SHOWN - 1 : -1]))  # newest first

    def on_resize(self, event: events.Resize) -> None:
        self.screen_stack[0].set_class(self._is_too_small(event.size), "too-small")
        self.tick()

    def _is_too_small(self, size: Size) -> bool:
        return size.width < LEAST.width or size.height < LEAST.height

    def _show(self, where: str, what: str | Text) -> None:
        """Draw the view `where` only if the content `what` is new, because the terminal can be slow."""
        if self._shown.get(where) != what:
            self._shown[where] = what
            self._views[where].update(what)

    # --- input

    def action_press(self) -> None:
        self.simulation.command({"do": "press"})

    def action_hold(self) -> None:
        self._move(down=not self.simulation.device.is_button_closed)

    def on_button_moved(self, message: Button.Moved) -> None:
        self._move(down=message.down)

    def _move(self, *, down: bool) -> None:
        self.simulation.command({"do": "hold" if down else "release"})

    def action_turn(self) -> None:
        device = self.simulation.device
        self._views["back"].update(
            f"{device.profile.title}\n\nS/N {device.serial}\n\nOATH {device.profile.kind.upper()}\n"
            "Do not open: the seed is wiped."
        )
        for part in (self._views["lcd"], self._views["bars"], self._button, self._views["back"]):
            part.toggle_class("hidden")

    def action_details(self) -> None:
        self._pane.toggle_class("hidden")
        self._case.toggle_class("small")
        self.tick()

    def action_unplug(self) -> None:
        self._command({"do": "unplug" if self.simulation.is_plugged else "plug"})

    def action_fault(self) -> None:
        def inject(name: str | None) -> None:
            if name is not None:
                self._command({"do": "clear" if name in self.simulation.faults() else "fault", "name": name})

        self.push_screen(FaultMenu(set(self.simulation.faults())), inject)

    def _command(self, request: dict[str, Any]) -> None:
        try:
            self._runner.command(request)
        except ValueError as error:
            self.notify(escape(str(error)), severity="error")

    # --- output

    def _lcd(self) -> Text:
        lit = seven_segment.large(self.simulation.device.lit_segments())
        text = Text()
        for strokes, glass in zip(lit, seven_segment.large((seven_segment.ALL,) * seven_segment.CELLS), strict=True):
            for column, shade in enumerate(glass):
                stroke = strokes[column : column + 1].strip()
                text.append(stroke or (shade if self._colour else " "), style=INK if stroke else SHADE)
            text.append("\n")
        text.rstrip()
        return text

    def _bars(self) -> str:
        device = self.simulation.device
        battery = f"battery {_bar(device.hardware.battery_level, 100)} {device.hardware.battery_level:3d} %"
        left = device.seconds_left()
        if left is None:
            return battery
        return f"{battery}   code {_bar(left[0], left[1])} {left[0]:2d} s"

    def plain(self) -> str:
        """Return the state of the token in one line of text."""
        device = self.simulation.device
        shown = device.visible_text() or "off"
        low = ", battery low" if device.hardware.is_battery_low else ""
        plugged = f"on {self._urls[0]}" if self.simulation.is_plugged else "unplugged"
        button = "down" if device.is_button_closed else "up"
        return f"display: {shown}; button {button}; {_words(device.state)}{low}; {plugged}"

    def _small(self) -> str:
        """Return the text for a terminal that is too small for the token, in lines of at most 20 columns."""
        now = f"{self.size.width}x{self.size.height}"
        shown = self.simulation.device.visible_text() or "off"
        return f"too small: {now}\nneeds {LEAST.width}x{LEAST.height}\ndisplay: {shown}"

    def _facts(self) -> str:
        true = self.simulation.oracle()
        time, age = show_time(true["time_ms"])[:-4], show_span(true["age_ms"] // 1000 * 1000)
        faults = ", ".join(true["faults"]) or "none"
        counter = "?" if true["counter"] is None else true["counter"]
        return (
            f"{true['serial']}  {true['state']}  next counter {counter}  last code {true['last_code'] or '-'}\n"
            f"{time} UTC  clock off by {true['error_ms']} ms  age {age}\n"
            f"ports {', '.join(self._urls)}\n"
            f"faults {faults}\n"
        )


def _hanging(name: str, what: str) -> Table:
    """Return a table of `name` and the text `what`, with each line of the text after the first indented."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=NAME)
    table.add_column()
    table.add_row(Text(name), Text(what))
    return table


def _bar(part: int, whole: int) -> str:
    full = -(-part * BAR // whole)
    return "█" * full + "░" * (BAR - full)


def _words(state: State) -> str:
    return "shows a code" if state is State.DISPLAY else str(state).replace("-", " ")
