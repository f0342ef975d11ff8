"""opensana for ComfyUI: a node that draws here, and one that asks a running `opensana serve`."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
