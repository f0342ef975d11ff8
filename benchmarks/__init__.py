"""Scripts that measure one claim each; none of them is imported by the package."""
