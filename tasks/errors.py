"""Errors that a user can act on: each message names the thing, what is wrong and what to do."""

import re


def public(text: str) -> str:
    """The text without the user and password of any URL in it."""
    return re.sub(r"//[^/\s@]*@", "//", text)


class RegraftError(Exception):
    """Base of all errors that are shown as one line, without a stack trace."""


class ParamsError(RegraftError):
    """A parameter is unknown, out of bounds, or would have no effect."""


class DataError(RegraftError):
    """The dataset can't be read, is not one, or too much of it is bad."""


class BackboneError(RegraftError):
    """A backbone is unknown, or its weights can't be had or do not fit."""


class CacheError(RegraftError):
    """The embedding cache lacks samples that should be in it, or is damaged."""


class FinetuneError(RegraftError):
    """Training can't start or go on: no memory, a loss that is no number, a checkpoint of another run."""


class GateError(RegraftError):
    """A decision is not what its digest says, or does not follow from its checks."""


class RegistryError(RegraftError):
    """A model version is missing, or may not be used in the way that was asked."""


class StackError(RegraftError):
    """The local servers could not be started, reached or stopped."""
