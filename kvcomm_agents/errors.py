"""Everything this package raises on purpose.

KVCommError
├── ConfigError              a setting out of range            (also ValueError)
├── ModelError
│   ├── ModelNotFoundError   no such folder, file or hub id    (also FileNotFoundError)
│   └── UnsupportedModelError  the architecture cannot do what was asked
├── RequestError             one request failed; the engine goes on
│   ├── PromptError          messages that make no prompt      (also ValueError)
│   ├── ConstraintError      a schema that makes no grammar    (also ValueError)
│   ├── IncompleteAnswerError  a structured answer that was cut off (also ValueError)
│   ├── ContextLengthError   longer than the model's context   (also ValueError)
│   ├── RequestTimeoutError  ran out of its time               (also TimeoutError)
│   ├── RequestCancelledError
│   └── DeviceMemoryError    no room even after evicting       (also MemoryError)
├── PlanError                a prefill plan that does not cover its prompt (also ValueError)
├── PackError                nothing to pack, or no room for it (also ValueError)
├── SavedMemoryError               a saved store that is damaged or belongs to another model
├── ReportError              a file that holds no reports   (also ValueError)
├── MissingExtraError        an optional dependency is absent  (also ImportError)
└── EngineError
    ├── EngineClosedError    the engine was closed
    ├── EngineFailedError    its thread had to end; the next request starts it anew
    ├── EngineForkedError    it was started before this process was forked
    └── EngineThreadError    a call from its own thread that would wait for itself
"""

from __future__ import annotations


class KVCommError(Exception):
    """Base class of every error this package raises on purpose."""


class ConfigError(KVCommError, ValueError):
    """A setting is out of range; the message names it and the way out."""


class ModelError(KVCommError):
    """A model could not be found, loaded or used."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No local folder, GGUF file or hub id by that name; the message says which command gets it."""


class UnsupportedModelError(ModelError):
    """The model's architecture cannot do what was asked; the message names the reason."""


class RequestError(KVCommError):
    """One request failed. The engine and every other request go on."""


class PromptError(RequestError, ValueError):
    """The messages make no prompt: none given, an unknown role, or a template that refuses them."""


class ConstraintError(RequestError, ValueError):
    """The schema or the tools make no grammar, or the answer left it; the message says where."""


class IncompleteAnswerError(RequestError, ValueError):
    """A structured answer was cut off before it was whole; the message says by what."""


class ContextLengthError(RequestError, ValueError):
    """The prompt does not fit into the model's context."""


class RequestTimeoutError(RequestError, TimeoutError):
    """The request ran out of the time it was given."""


class RequestCancelledError(RequestError):
    """The caller cancelled the request."""


class DeviceMemoryError(RequestError, MemoryError):
    """The device had no room for the request, even after evicting stored KV."""


class PlanError(KVCommError, ValueError):
    """A prefill plan does not cover its prompt exactly once, or leaves its last token uncomputed."""


class PackError(KVCommError, ValueError):
    """There is nothing to pack, or no room for it."""


class SavedMemoryError(KVCommError):
    """A saved store is damaged, or was made by another model or tokenizer."""


class ReportError(KVCommError, ValueError):
    """A file of reports cannot be read, or holds something else; the message names the line."""


class MissingExtraError(KVCommError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class EngineError(KVCommError):
    """The engine as a whole cannot do what was asked."""


class EngineClosedError(EngineError):
    """The engine was closed and takes no more requests."""


class EngineFailedError(EngineError):
    """The engine's thread had to end, and what waited fails; the next request starts it anew."""


class EngineForkedError(EngineError):
    """The engine was started before this process was forked; its thread is in the parent."""


class EngineThreadError(EngineError):
    """A call from the engine's own thread, say of an observer, that would wait for what that thread does next."""
