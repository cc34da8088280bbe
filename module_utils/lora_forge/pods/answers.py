"""What RunPod answers, held to a schema: strict where money depends on it, lenient where a field may be missing.

Fields that are not listed here are dropped, environments of pods among them, which RunPod shows in clear.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Optional, TypeVar

import pydantic

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?")
_SSH_PORT = 22
_MAPPED_BY = 60  # seconds of a container's life after which a port that is not mapped counts as never mapped


def is_host(text: str) -> bool:
    """Whether a text is an IP address or a DNS name, and so no option of a program that takes it as an argument."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return bool(_DNS_NAME.fullmatch(text))
    return "%" not in text  # the zone of an IPv6 address may hold anything


def _host(text: str) -> str:
    if not is_host(text):
        raise ValueError("neither an IP address nor a DNS name")
    return text


def _or_none(value: Any, handler: pydantic.ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except pydantic.ValidationError:
        return None


def _fitting(values: Any, handler: pydantic.ValidatorFunctionWrapHandler) -> Any:
    """Take those entries of a list that fit, and an empty list where there is none."""
    kept = []
    for value in values if isinstance(values, list) else []:
        try:
            kept += handler([value])
        except pydantic.ValidationError:
            continue
    return kept


_T = TypeVar("_T")
_Maybe = Annotated[Optional[_T], pydantic.WrapValidator(_or_none)]  # None where it does not fit
_Some = Annotated[list[_T], pydantic.WrapValidator(_fitting)]
_Word = Annotated[str, pydantic.Field(strict=True, min_length=1)]
_Usd = Annotated[float, pydantic.Field(strict=True, ge=0, allow_inf_nan=False)]
_Count = Annotated[int, pydantic.Field(strict=True, ge=0)]
_Port = Annotated[int, pydantic.Field(strict=True, ge=1, le=65535)]
_Host = Annotated[str, pydantic.Field(strict=True), pydantic.AfterValidator(_host)]


class _Answer(pydantic.BaseModel):
    # Not all are built with each start of a module: it asks for one or two of them.
    model_config = pydantic.ConfigDict(extra="ignore", defer_build=True)


class Problem(_Answer):
    """An error (RFC 9457): what RunPod says of it, as far as that is text."""

    title: _Maybe[str] = None
    detail: _Maybe[str] = None
    errors: _Some[str] = []


class Pagination(_Answer):
    """Where a list goes on; a flag or a cursor of another type is an error."""

    nextCursor: Optional[pydantic.StrictStr] = None
    hasNextPage: Optional[pydantic.StrictBool] = None


class _Gpu(_Answer):
    id: _Word
    count: _Maybe[_Count] = None


class _PersistentMount(_Answer):
    size: _Maybe[_Count] = None
    path: _Maybe[str] = None


class _NetworkMount(_Answer):
    volumeId: _Word
    path: _Maybe[str] = None


class _Mounts(_Answer):
    persistent: _Maybe[_PersistentMount] = None
    network: _Some[_NetworkMount] = []


class _Endpoint(_Answer):
    host: _Host
    port: _Port
    username: _Maybe[str] = "root"


class _Mapping(_Answer):
    private: _Maybe[_Port] = None
    public: _Maybe[_Port] = None
    type: _Maybe[str] = None
    ip: _Maybe[_Host] = None


class _Runtime(_Answer):
    uptime: _Maybe[_Count] = None
    ports: _Some[_Mapping] = []


class _Ssh(_Answer):
    direct: Any = None


class Pod(_Answer):
    """A pod. Its id, name, status and cost decide about money; what else does not fit counts as not known.

    Attributes:
        status: As RunPod writes it, also one that is not described.
        cost: USD an hour now.
        ssh: Where its sshd is, under ``direct``; see :meth:`shown`.
    """

    id: _Word
    name: _Word
    status: _Word
    cost: _Usd
    image: _Maybe[str] = None
    gpu: _Maybe[_Gpu] = None
    cloud: _Maybe[str] = None
    dataCenterId: _Maybe[str] = None
    cudaVersion: _Maybe[str] = None
    mounts: _Maybe[_Mounts] = None
    ssh: _Maybe[_Ssh] = None
    runtime: _Maybe[_Runtime] = None
    createdAt: _Maybe[str] = None
    startedAt: _Maybe[str] = None
    env: _Maybe[dict[str, Any]] = pydantic.Field(None, exclude=True)

    def shown(self) -> dict[str, Any]:
        """Return the pod as the rest of the project knows it.

        Returns:
            The fields without the environment; ``deadline`` where the environment names one; ``ssh.direct``, a checked
            address or None; ``ssh_problem``, why it will have none, in words, and empty where it may still come.
        """
        shown = self.model_dump()
        direct, problem = self._address()
        shown["ssh"] = {"direct": direct}
        shown["ssh_problem"] = problem
        deadline = str((self.env or {}).get("LORA_FORGE_DEADLINE", ""))
        if re.fullmatch(r"[0-9]{1,12}", deadline):
            shown["deadline"] = float(deadline)
        return shown

    def _address(self) -> tuple[Optional[dict[str, Any]], str]:
        """Return where sshd is, or why that will not be known."""
        named, problem = self.ssh.direct if self.ssh else None, ""
        if named is not None:
            try:
                return _Endpoint.model_validate(named).model_dump(), ""
            except pydantic.ValidationError:
                given = {key: named.get(key) for key in ("host", "port")} if isinstance(named, dict) else named
                problem = f"RunPod names no address for SSH, but {ascii(given)[:120]}"
        runtime = self.runtime or _Runtime()
        for mapping in runtime.ports:
            if mapping.private != _SSH_PORT or (mapping.type or "tcp").lower() != "tcp":
                continue
            if mapping.ip and mapping.public and not _is_inner(mapping.ip):
                return {"host": mapping.ip, "port": mapping.public, "username": "root"}, ""
            if mapping.ip and _is_inner(mapping.ip):
                problem = problem or f"it has no public IP address, only {mapping.ip}"
            elif (runtime.uptime or 0) >= _MAPPED_BY:
                problem = problem or (
                    f"it has run for {runtime.uptime} s, and its port {_SSH_PORT} has no public address"
                )
        return None, problem


def _is_inner(host: str) -> bool:
    """Whether a host is an address of a private network; this machine's own are the simulator's."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not address.is_global and not address.is_loopback


class _ByCloud(_Answer):
    secure: _Maybe[_Usd] = None
    community: _Maybe[_Usd] = None


class _CountByCloud(_Answer):
    secure: _Maybe[_Count] = None
    community: _Maybe[_Count] = None


class _Place(_Answer):
    id: _Word
    availability: _Maybe[str] = None


class GpuType(_Answer):
    """An entry of the catalogue. A price that is not known is none, and the GPU not offered."""

    id: _Word
    name: _Maybe[str] = None
    memory: _Maybe[_Count] = None
    secure: _Maybe[bool] = None
    community: _Maybe[bool] = None
    price: _Maybe[_ByCloud] = None
    maxCount: _Maybe[_CountByCloud] = None
    availability: _Maybe[str] = None
    dataCenters: _Some[_Place] = []

    def shown(self) -> dict[str, Any]:
        """Return the entry as a plain object, each part of it there."""
        empty = {"secure": None, "community": None}
        shown = self.model_dump()
        return {**shown, "price": shown["price"] or empty, "maxCount": shown["maxCount"] or empty}


class Volume(_Answer):
    """A network volume."""

    id: _Word
    dataCenter: _Word
    name: _Maybe[str] = None
    size: _Maybe[_Count] = None

    def shown(self) -> dict[str, Any]:
        """Return the volume as a plain object."""
        return self.model_dump()


class _Bill(_Answer):
    podId: _Word
    totalAmount: Annotated[float, pydantic.Field(strict=True, allow_inf_nan=False)]  # one that gives back is below 0


class Bills(_Answer):
    """What was billed for pods."""

    records: list[_Bill]


class LogEvent(_Answer):
    """A line of a pod's log."""

    line: pydantic.StrictStr


def first_error(error: pydantic.ValidationError) -> str:
    """Tell in a line where an answer does not fit, and how: «cost: Input should be …»."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
