"""The exception tree: one base to catch, and the built-in types that callers already catch."""

import inspect

import pytest

from kvcomm_agents import errors

PUBLIC = [error for _, error in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("error", PUBLIC)
def test_one_base_catches_everything(error):
    assert issubclass(error, errors.KVCommError)


@pytest.mark.parametrize("error", PUBLIC)
def test_every_error_is_in_the_drawn_tree(error):
    assert error.__name__ in errors.__doc__


@pytest.mark.parametrize("error", PUBLIC)
def test_the_message_is_kept(error):
    assert str(error("70000 tokens, at most 8192")) == "70000 tokens, at most 8192"


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.ModelNotFoundError, FileNotFoundError),
        (errors.PromptError, ValueError),
        (errors.ContextLengthError, ValueError),
        (errors.RequestTimeoutError, TimeoutError),
        (errors.DeviceMemoryError, MemoryError),
        (errors.PlanError, ValueError),
        (errors.ConstraintError, ValueError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_code_that_catches_the_builtin_still_works(error, builtin):
    with pytest.raises(builtin):
        raise error("")


def test_a_failed_request_is_told_from_a_broken_engine():
    failed = {error for error in PUBLIC if issubclass(error, errors.RequestError)}
    assert {errors.PromptError, errors.ContextLengthError, errors.RequestTimeoutError} < failed
    assert not failed & {errors.EngineClosedError, errors.SavedMemoryError, errors.ConfigError, errors.ModelError}
