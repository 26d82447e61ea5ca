"""One tree of picklable errors. Every leaf says what is wrong, where, and what to do next."""


class PixelLMError(Exception):
    """Base of every error that a user can cause; `str(error)` is fit to be shown to that user.

    Subclasses pass all their arguments to `super().__init__`, which is what makes them picklable between Ray processes.
    """


class ConfigError(PixelLMError, ValueError):
    """A configuration file or a `key=value` override is wrong."""


class YamlError(ConfigError):
    """A file or a value is not YAML. `name` is the file, or the key of the command line; `line` counts from 1."""

    def __init__(self, name: str, line: int, what: str):
        super().__init__(name, line, what)
        self.name, self.line, self.what = name, line, what

    def __str__(self) -> str:
        return f"{self.name}:{self.line}: {self.what}"


class StorageError(PixelLMError, OSError):
    """A URI cannot be read or written."""


class StorageUnavailableError(StorageError):
    """An object store did not answer, or refused: the same call may succeed later."""


class ShardError(PixelLMError, ValueError):
    """A shard folder is not complete or not what its manifest says."""


class ModelError(PixelLMError, ValueError):
    """Weights, configuration and inputs of the model do not fit together."""


class DivergedError(PixelLMError, ArithmeticError):
    """A training run whose loss is no number any more, or far above what it was: going on would only repeat it."""


class InputError(PixelLMError, ValueError):
    """A photo or a question that somebody sent cannot be used. `code` is a stable slug such as `photo_unreadable`."""

    def __init__(self, code: str, detail: str):
        super().__init__(code, detail)
        self.code, self.detail = code, detail

    def __str__(self) -> str:
        return self.detail


class DeadlineError(PixelLMError, TimeoutError):
    """An answer was not complete when its time was over."""


class ServerError(PixelLMError, RuntimeError):
    """A server answered a question with a problem. `status` is HTTP's, `code` a stable slug; 0 and `no_answer` when it did not answer."""

    def __init__(self, status: int, code: str, detail: str):
        super().__init__(status, code, detail)
        self.status, self.code, self.detail = status, code, detail

    def __str__(self) -> str:
        return self.detail


class RowError(PixelLMError, ValueError):
    """One row of a dataset is bad. `reason` is a stable slug such as `polygon_outside`; the row is set aside with it."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class TooManyRejectedError(PixelLMError, RuntimeError):
    """The share of rejected rows is above what the configuration allows."""


class ResourcesError(PixelLMError, TimeoutError):
    """No node of the cluster has what a job asks for, and none came in time; or a task needed more memory than its node had."""


class SpendingCapError(PixelLMError, RuntimeError):
    """The next request to a paid endpoint could cost more than the configuration allows."""
