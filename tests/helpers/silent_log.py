"""A log of the training loop that writes nothing."""


class SilentLog:
    """Stands where the loop expects a `RunLog`; keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict]] = []
        self.said: list[str] = []

    def metrics(self, step: int, values: dict) -> None:
        self.lines.append((step, values))

    def message(self, message: str, style: str = "") -> None:
        self.said.append(message)

    def advance(self, step: int, *, loss: float) -> None:
        pass
