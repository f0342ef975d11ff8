"""Networks that share a GPU too small for all of them: each is there in its turn.

The weights of each lie on the host once, in one piece of memory, which CUDA locks in place so that
the card can fetch it by itself. A turn begins with one copy of the piece; at its end the copy is
let go and nothing is written back, since drawing changes no weight.
"""

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from opensana.device import format_bytes
from opensana.errors import OutOfMemory
from opensana.runtime.shortage import attempt

ALIGNMENT = 256
"""Of a tensor within the piece, in bytes: what kernels want on any device."""
Slot = tuple[dict[str, Any], str]
"""A module's table of parameters or buffers, and a name in it."""


class Turns:
    """Which networks of a model are on the device.

    Those that are not known here are elsewhere all the time, and have no turns.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._guests: weakref.WeakKeyDictionary[nn.Module, Guest] = weakref.WeakKeyDictionary()

    def add(self, network: nn.Module, *, stays: bool) -> None:
        """Gather a network's weights on the host. One that `stays` does so from its first turn."""
        self._guests[network] = Guest(network, self.device, stays=stays)

    def begin(self, *networks: nn.Module | None) -> None:
        """The turn of these networks: all others leave, but those that stay.

        OutOfMemory where the device is too small for them; those that were to leave have left.
        """
        known = (self._guests.get(one) for one in networks if one is not None)
        wanted = [guest for guest in known if guest is not None]
        if not wanted:
            return
        for guest in self._guests.values():
            if guest not in wanted and not guest.stays:
                guest.leave()
        for guest in wanted:
            guest.come()

    def end(self) -> None:
        """Nobody's turn: all leave, but those that stay."""
        for guest in self._guests.values():
            if not guest.stays:
                guest.leave()

    def is_there(self, network: nn.Module) -> bool:
        """Whether the network is on the device now."""
        return self._guests[network].there

    def room(self, free: int, now: nn.Module, *before: nn.Module | None) -> int:
        """Bytes that are free in the turn of `now`, and after those `before` it, if `free` are."""
        for network, guest in self._guests.items():
            then = network is now or (guest.stays and (guest.there or network in before))
            free += guest.bytes * (guest.there - then)
        return max(0, free)


class Guest:
    """A network and the piece of the host's memory that holds its weights."""

    def __init__(self, network: nn.Module, device: torch.device, *, stays: bool) -> None:
        self.stays, self.there, self._device = stays, False, device
        self._name = type(network).__name__
        slots = _slots(network)
        tensors = [table[name] for (table, name), *_ in slots]
        self._places = [_Place(x) for x in tensors]
        offsets = [0]
        for place in self._places:
            offsets.append(offsets[-1] + -(-place.bytes // ALIGNMENT) * ALIGNMENT)
        self._slots, self._offsets, self.bytes = slots, offsets[:-1], offsets[-1]
        del tensors
        self._piece = torch.empty(self.bytes, dtype=torch.uint8)
        for index, view in enumerate(self._views(self._piece)):
            (table, name), *_ = slots[index]
            view.copy_(table[name])
            self._set(index, view)  # which frees the tensor before the next is copied
        if device.type == "cuda":
            _lock(self, self._piece)

    def come(self) -> None:
        """Be on the device; OutOfMemory where it is too small, and nothing is changed."""
        if self.there:
            return
        with torch.inference_mode(False):
            copied = attempt(self._copied, self._device)
            if copied is None:
                raise OutOfMemory(
                    f"there is not enough memory on {self._device} for the {self._name}, which "
                    f"takes {format_bytes(self.bytes)}; try fewer bits (--quantize), or end what "
                    "else uses the memory"
                )
            self._hold(copied)
        self.there = True

    def leave(self) -> None:
        """Be on the host."""
        if not self.there:
            return
        with torch.inference_mode(False):
            self._hold(self._piece)
        self.there = False
        if self._device.type == "cuda":  # whole pieces, so that the next finds room for its own
            torch.cuda.empty_cache()

    def _copied(self) -> Tensor:
        return self._piece.to(self._device, non_blocking=True, copy=True)

    def _hold(self, piece: Tensor) -> None:
        for index, view in enumerate(self._views(piece)):
            self._set(index, view)

    def _views(self, piece: Tensor) -> list[Tensor]:
        placed = zip(self._places, self._offsets, strict=True)
        return [place.view(piece[offset : offset + place.bytes]) for place, offset in placed]

    def _set(self, index: int, view: Tensor) -> None:
        parameter = self._places[index].parameter
        made = nn.Parameter(view, requires_grad=False) if parameter else view
        for table, name in self._slots[index]:
            table[name] = made


class _Place:
    """How a tensor lies in a piece of bytes."""

    def __init__(self, x: Tensor) -> None:
        self.parameter = isinstance(x, nn.Parameter)
        self.dtype, self.shape, self.bytes = x.dtype, x.shape, x.nbytes
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        self.format = torch.channels_last if last and not x.is_contiguous() else None

    def view(self, taken: Tensor) -> Tensor:
        numbers = taken.view(self.dtype)
        if self.format is None:
            return numbers.view(self.shape)
        first, channels, *sides = self.shape
        return numbers.view(first, *sides, channels).permute(0, 3, 1, 2)


def _slots(network: nn.Module) -> list[list[Slot]]:
    """Where the network's parameters and buffers are held; those of one tensor are together."""
    found: dict[int, list[Slot]] = {}
    for part in network.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append((table, name))
    return list(found.values())


def _lock(owner: object, piece: Tensor) -> None:
    """Keep a piece where it is in the host's memory as long as its owner lives.

    It is locked as it lies: torch's own pinned memory comes in powers of two, up to twice as much.
    """
    runtime: Any = torch.cuda.cudart()
    address = piece.data_ptr()
    if int(runtime.cudaHostRegister(address, piece.nbytes, 0)):
        warnings.warn(
            f"{format_bytes(piece.nbytes)} of the host's memory could not be locked for the GPU; "
            "parts of the model take longer to come and go",
            stacklevel=2,
        )
        _forget_error()
        return
    weakref.finalize(owner, runtime.cudaHostUnregister, address).atexit = False


def _forget_error() -> None:
    """Take the error that CUDA keeps for whoever asks next: torch would raise it elsewhere."""
    try:
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except RuntimeError:
        pass
