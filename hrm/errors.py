"""Errors that a user can act on: what was wrong, where, and what to do about it."""


class HrmError(Exception):
    """Base of every error this toolkit raises on purpose; the command line prints it without a traceback."""


class UnitError(HrmError):
    """A quantity without a unit, with a unit of the wrong kind, or not a finite number."""


class UnknownNameError(HrmError):
    """A profile, model, schedule, operator or field that does not exist."""


class ProfileError(HrmError):
    """A hardware profile that is missing, malformed or physically impossible."""


class ModelConfigError(HrmError):
    """A model configuration that cannot be read or lacks a field it needs."""


class CheckpointError(HrmError):
    """A checkpoint directory that lacks a file or a tensor, or holds one that cannot be read."""


class WorkloadError(HrmError):
    """A workload whose lengths are missing or impossible."""


class PolicyError(HrmError):
    """A policy that contradicts itself or does not fit the machine."""


class InfeasibleError(HrmError):
    """No policy fits: which constraint, by how many bytes, and the nearest change that would help."""


class RooflineError(HrmError):
    """An operator above its own roof: a wrong unit, flop count or peak."""


class SolverError(HrmError):
    """The solver did not prove its answer optimal, or two solvers disagree."""


class ScheduleError(HrmError):
    """A task graph that cannot run: tasks waiting for each other, or a buffer read or overwritten out of turn."""


class RequestError(HrmError):
    """A file of requests, or of their results, that cannot be read, written or continued; names file and line."""
