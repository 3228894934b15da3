"""Calls, inputs and outputs as rows of the queue's tables, and back."""

from __future__ import annotations

from typing import Any

from cadenza.protocol.calls import INTERNAL_FAILURE, BlobRef
from cadenza.storage.entry import CallRecord, Entry, Output

Row = tuple[Any, ...]

INPUT_COLUMNS = (
    "seq, input_id, call_id, position, function_id, attached, state, fence, ready_at, retries, losses, container_id,"
    " blob_id, blob_size, data, method"
)
OUTPUT_COLUMNS = (
    "call_id, position, input_id, status, data, blob_id, blob_size, error, items, attempts, container_id, expires_at"
)
CALL_COLUMNS = (
    "call_id, function_id, app_id, kind, attached, caller, parent_input_id, created_at, inputs, total, cancelled,"
    " method"
)


def input_row(one: Entry) -> Row:
    """In the order of `INPUT_COLUMNS`."""
    blob = one.blob
    return (
        one.seq, one.input_id, one.call_id, one.index, one.function_id, int(one.attached), 1 if one.fence else 0,
        one.fence, one.ready_at, one.retries, one.losses, one.container_id,
        None if blob is None else blob.blob_id, None if blob is None else blob.size, one.data,
        one.method,
    )  # fmt: skip


def call_row(one: CallRecord) -> Row:
    """In the order of `CALL_COLUMNS`."""
    return (
        one.call_id, one.function_id, one.app_id, one.kind, int(one.attached), one.caller, one.parent_input_id,
        one.created_at, one.inputs, one.total, int(one.cancelled), one.method,
    )  # fmt: skip


def output_row(one: Output) -> Row:
    """In the order of `OUTPUT_COLUMNS`."""
    blob = one.blob
    return (
        one.call_id, one.index, one.input_id, one.status, one.data, None if blob is None else blob.blob_id,
        None if blob is None else blob.size, one.error, one.items, one.attempts, one.container_id, one.expires_at,
    )  # fmt: skip


def unstorable(row: Row) -> Row:
    """What is kept in place of an output that the database does not take."""
    text = "the result could not be stored; the server's log says why"
    return (*row[:3], INTERNAL_FAILURE, b"", None, None, text, 0, row[9], "", row[11])


def entry(row: Row) -> Entry:
    """From the columns of ``due_inputs``."""
    return Entry(
        seq=row[0], input_id=row[1], call_id=row[2], index=row[3], function_id=row[4], attached=bool(row[5]),
        fence=row[6], ready_at=row[7], retries=row[8], losses=row[9], container_id=row[10],
        blob=None if row[11] is None else BlobRef(row[11], row[12]), data=row[13], method=row[14],
    )  # fmt: skip


def record(row: Row) -> CallRecord:
    """From the order of `CALL_COLUMNS`."""
    return CallRecord(
        call_id=row[0], function_id=row[1], app_id=row[2], kind=row[3], attached=bool(row[4]), caller=row[5],
        parent_input_id=row[6], created_at=row[7], inputs=row[8], total=row[9], cancelled=bool(row[10]),
        method=row[11],
    )  # fmt: skip


def output(row: Row) -> Output:
    """From the columns of ``get_outputs``."""
    return Output(
        call_id=row[0], index=row[1], input_id=row[2], status=row[3], data=row[4],
        blob=None if row[5] is None else BlobRef(row[5], row[6]), error=row[7], items=row[8], attempts=row[9],
        container_id=row[10], expires_at=row[11],
    )  # fmt: skip
