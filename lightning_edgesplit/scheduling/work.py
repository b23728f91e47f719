"""What one client has to do in a round, and how long that takes it alone: what a round is simulated with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Work:
    """What one client has to do at one cut, in a local step of its whole batch unless said otherwise.

    Attributes:
        forward: Seconds of its forward pass.
        backward: Seconds of its backward pass and optimizer step.
        server: Seconds of the server's part at its full speed.
        server_forward: Those of them that are its forward pass.
        bytes_up: Bytes that go up, `step_up` included.
        bytes_down: Bytes that come down, `step_down` included.
        step_up: Bytes of them that a message has whatever its batch.
        step_down: The same downwards.
        download: Bytes of the client-side model, once per round.
        upload: The same upwards.
        limit_up: Bytes/s that the client reaches with the shared link for itself.
        limit_down: The same downwards.
        latency: Seconds that a message takes beside its bytes.
        step_latency: The same of a local step's messages: more than one where the step comes back to the client.
    """

    forward: float
    backward: float
    server: float
    server_forward: float
    bytes_up: float
    bytes_down: float
    step_up: float
    step_down: float
    download: float
    upload: float
    limit_up: float
    limit_down: float
    latency: float
    step_latency: float

    @cached_property
    def alone(self) -> float:
        """Seconds of a local step of a client that has links and server for itself."""
        return self.until_server + self.server + self.bytes_down / self.limit_down + self.backward + self.step_latency

    @cached_property
    def until_server(self) -> float:
        """Seconds of it until the server begins."""
        return self.forward + self.bytes_up / self.limit_up + self.step_latency

    @cached_property
    def upload_alone(self) -> float:
        """Seconds in which the client-side model goes up, alone."""
        return self.upload / self.limit_up + self.latency

    @cached_property
    def download_alone(self) -> float:
        """Seconds in which the client-side model comes down, alone."""
        return self.download / self.limit_down + self.latency

    def tail(self, steps: int, done: float = 0.0) -> float:
        """Seconds to the end of the round of a client that had everything for itself: how urgent it is.

        Args:
            steps: Local steps that it has ahead, the present one included.
            done: Seconds of the present one that are over.
        """
        return steps * self.alone - done + self.upload_alone
