"""Tokens: who a connection is, beside the user that the kernel names. Source: semantics.md section 24.

Of a secret only a salted SHA-256 is kept. A slow hash (scrypt) protects words that people choose; a secret here is 131
random bits, which nobody tries through, and it is checked at each connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from typing import Any, Callable, Collection, Iterable, Optional

from cadenza.base.clock import Clock
from cadenza.base.errors import AuthError, InvalidError, NotFoundError, PermissionDeniedError
from cadenza.base.ids import IdSource
from cadenza.control.access import Access, Standing
from cadenza.control.directory import Token, User
from cadenza.control.request import Caller, Request
from cadenza.observe.log import Log
from cadenza.protocol.accounts import (
    OWNER,
    Identity,
    TokenCreate,
    TokenCreated,
    TokenDisable,
    TokenInfo,
    TokenList,
    TokenRef,
)
from cadenza.protocol.accounts import Tokens as TokensReply
from cadenza.protocol.method import SCOPES, Empty
from cadenza.storage.db import Database, Transaction

SALT_BYTES = 16
MAX_LIFETIME_S = 10 * 365 * 24 * 3600.0
MAX_NAME_CHARS = 64
MAX_TOKENS = 10_000
USE_NOTED_S = 60.0
"""How stale the time of a token's last use may be in the database."""
DROP_DELAY_S = 0.1
"""Before connections of a token that was ended are ended too: one of them may be waiting for the reply."""
NOBODY = Token("", "", b"\0" * SALT_BYTES, b"\0" * 32)
"""What an unknown token is compared with, so that it takes as long as a known one."""
WRONG = "the token or its secret is wrong: see `cadenza token info`, or make a new one with `cadenza token new`"

_log = Log("cadenza.control.tokens")


def digest(salt: bytes, secret: str) -> bytes:
    """What is kept of a secret. Pure."""
    return hashlib.sha256(salt + secret.encode("utf-8", "surrogatepass")).digest()


def narrowed(standing: Standing, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The environment ids of a token that ``standing`` makes: never more than its own. PermissionDeniedError. Pure."""
    own = standing.environment_ids
    if not own:
        return wanted
    if not set(wanted) <= set(own):
        raise PermissionDeniedError(
            f"the token {standing.token_id} is for single environments: a token that it makes is for no others"
        )
    return wanted or own


class Tokens:
    """Handlers of ``token.*`` and ``account.*``; the only writer of `Directory.tokens`.

    ``drop(token_ids)`` ends the connections that came with them.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        ids: IdSource,
        access: Access,
        drop: Callable[[Collection[str]], None] = lambda token_ids: None,
        salt: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._access = access
        self._directory = access.directory
        self._drop = drop
        self._salt = salt
        self._noted: dict[str, float] = {}

    async def start(self) -> None:
        """Load what is kept."""
        for row in await self._db.fetch("token_all"):
            self._directory.tokens[row[0]] = Token(
                row[0], row[1], row[3], row[4], row[2], tuple(row[5].split()), tuple(row[6].split()), row[7], row[8],
                row[9], bool(row[10]),
            )  # fmt: skip

    def identify(self, token_id: str, secret: str) -> None:
        """Check a token. AuthError when it is unknown, its secret wrong, or it is disabled or has expired.

        An unknown one costs the same work as one with a wrong secret, and is told the same.
        """
        token = self._directory.tokens.get(token_id, NOBODY)
        same = hmac.compare_digest(digest(token.salt, secret), token.digest)
        if token is NOBODY or not same:
            raise AuthError(WRONG)
        self._access.standing(Caller("", "", token_id))
        token.used_at = self._clock.now()
        if token.used_at - self._noted.get(token_id, 0.0) >= USE_NOTED_S:
            self._noted[token_id] = token.used_at
            done = self._db.submit(lambda transaction: transaction.execute("token_used", (token.used_at, token_id)))
            done.add_done_callback(lambda done: done.cancelled() or done.exception())  # a full disk refuses nobody

    def tick(self) -> None:
        """End the connections of tokens that have expired. Called about once a second."""
        now = self._clock.now()
        gone = {one.token_id for one in self._directory.tokens.values() if one.expires_at and now >= one.expires_at}
        if gone:
            self._drop(gone)

    # --- methods ---

    async def whoami(self, request: Request[Empty]) -> Identity:
        caller = request.caller
        if caller.container_id:
            return Identity(
                "", "container", environments=self._access.visible(caller), container_id=caller.container_id
            )
        found = self._access.standing(caller)
        token = self._directory.tokens.get(found.token_id)
        return Identity(
            found.user.name,
            found.user.role,
            found.token_id,
            found.scopes,
            self._names(found.environment_ids),
            token.expires_at if token is not None else 0.0,
        )

    async def create(self, request: Request[TokenCreate]) -> TokenCreated:
        body = request.body
        standing = self._access.standing(request.caller)
        user = standing.user
        if body.user and body.user != user.name:
            self._access.manage(request.caller, "make a token for somebody else")
            found = self._directory.user_named(body.user) or self._directory.user_named(body.user, True)
            if found is None:
                raise NotFoundError(f"there is no member and no service user {body.user[:80]!r}")
            user = found
        self._check_rank(standing, user)
        old = self._mine(standing, body.replaces) if body.replaces else None
        unknown = set(body.scopes) - set(SCOPES)
        if unknown:
            raise InvalidError(f"there is no scope {sorted(unknown)[0]!r}: the scopes are {', '.join(SCOPES)}")
        wanted = tuple(self._environment_id(one) for one in body.environments)
        made, secret = self.make(
            user,
            body.name or (old.name if old is not None else ""),
            body.scopes or (old.scopes if old is not None else ()),
            narrowed(standing, wanted or (old.environment_ids if old is not None else ())),
            self._expiry(standing, body.expires_in_s, old),
        )
        gone = [body.replaces] if old is not None else []

        def write(transaction: Transaction) -> None:
            self.write(transaction, made)
            for one in gone:
                transaction.execute("token_delete", (one,))

        await self._db.transaction(write)
        self._directory.tokens[made.token_id] = made
        self.forget(gone)
        _log.info("a token was made", token=made.token_id, user=user.name, by=standing.user.name)
        return TokenCreated(made.token_id, secret, made.expires_at)

    def make(
        self,
        user: User,
        name: str = "",
        scopes: tuple[str, ...] = (),
        environment_ids: tuple[str, ...] = (),
        expires_at: float = 0.0,
    ) -> tuple[Token, str]:
        """A token that is kept nowhere yet, and its secret. InvalidError for a name that is too long."""
        if len(name) > MAX_NAME_CHARS:
            raise InvalidError(f"a token's name has at most {MAX_NAME_CHARS} characters")
        if len(self._directory.tokens) >= MAX_TOKENS:
            raise InvalidError(f"there are {MAX_TOKENS} tokens: delete some (cadenza workspace member-tokens)")
        secret = "as-" + self._ids.new("token")[3:]
        salt = self._salt(SALT_BYTES)
        ordered = tuple(one for one in SCOPES if one in scopes)
        token_id = self._ids.new("token")
        made = Token(
            token_id, user.user_id, salt, digest(salt, secret), name, ordered, tuple(dict.fromkeys(environment_ids)),
            self._clock.now(), expires_at,
        )  # fmt: skip
        return made, secret

    def lifetime(self, expires_in_s: float) -> float:
        """Until when a token is good that is to live so long from now; 0 for ever. InvalidError."""
        if not 0 <= expires_in_s <= MAX_LIFETIME_S:
            raise InvalidError(f"a token lives up to {MAX_LIFETIME_S:.0f} seconds, not {expires_in_s:g}")
        return self._clock.now() + expires_in_s if expires_in_s else 0.0

    def _expiry(self, standing: Standing, expires_in_s: float, old: Optional[Token]) -> float:
        """Until when: as asked; as long again as the one it replaces; never longer than the token that makes it."""
        if not expires_in_s and old is not None and old.expires_at:
            expires_in_s = old.expires_at - old.created_at
        until = self.lifetime(expires_in_s)
        own = self._directory.tokens.get(standing.token_id)
        if own is not None and own.expires_at and own is not old:
            return min(until or own.expires_at, own.expires_at)
        return until

    @staticmethod
    def write(transaction: Transaction, made: Token) -> None:
        """Keep a token that `make` made."""
        transaction.execute(
            "token_add",
            (
                made.token_id, made.user_id, made.name, made.salt, made.digest, " ".join(made.scopes),
                " ".join(made.environment_ids), made.created_at, made.expires_at,
            ),
        )  # fmt: skip

    async def list(self, request: Request[TokenList]) -> TokensReply:
        """All that the caller may change: its own, or of an owner or manager all."""
        standing, wanted = self._access.standing(request.caller), request.body.user
        users = self._directory.users
        found = [one for one in self._directory.tokens.values() if one.user_id in users]
        if not standing.rules or standing.environment_ids:
            found = [one for one in found if one.user_id == standing.user.user_id]
        return TokensReply(tuple(self._info(one) for one in found if not wanted or users[one.user_id].name == wanted))

    async def delete(self, request: Request[TokenRef]) -> Empty:
        token_id = request.body.token_id
        standing = self._access.standing(request.caller)
        try:
            self._mine(standing, token_id)
        except NotFoundError:
            if request.body.allow_missing:
                return Empty()
            raise
        await self._db.execute("token_delete", (token_id,))
        self.forget([token_id])
        return Empty()

    async def disable(self, request: Request[TokenDisable]) -> Empty:
        """Disable tokens, or enable them again."""
        body = request.body
        standing = self._access.standing(request.caller)
        if body.every == bool(body.token_ids):
            raise InvalidError("name the tokens, or all of them: one of the two")
        if body.every:
            may = [one for one in self._directory.tokens.values() if self._may_change(standing, one)]
        else:
            may = [self._mine(standing, one) for one in body.token_ids]
        changed = [one for one in may if one.disabled != body.disabled]

        def write(transaction: Transaction) -> None:
            for one in changed:
                transaction.execute("token_disabled", (int(body.disabled), one.token_id))

        await self._db.transaction(write)
        for one in changed:
            one.disabled = body.disabled
        if body.disabled:
            self._end_soon([one.token_id for one in changed])
        return Empty()

    # --- for members ---

    def of(self, user_id: str) -> Iterable[Token]:
        """A user's tokens."""
        return [one for one in self._directory.tokens.values() if one.user_id == user_id]

    def forget(self, token_ids: Collection[str]) -> None:
        """They are gone from the database: nobody is let in with them, and who came with them is sent away."""
        for one in token_ids:
            self._directory.tokens.pop(one, None)
            self._noted.pop(one, None)
        self._end_soon(token_ids)

    def _end_soon(self, token_ids: Collection[str]) -> None:
        if token_ids:
            asyncio.get_running_loop().call_later(DROP_DELAY_S, self._drop, frozenset(token_ids))

    # --- rules ---

    def _check_rank(self, standing: Standing, user: User) -> None:
        if user.role == OWNER and standing.user.role != OWNER:
            raise PermissionDeniedError(f"{user.name} is an owner of the workspace: only owners may do that")

    def _may_change(self, standing: Standing, token: Token) -> bool:
        user = self._directory.users.get(token.user_id)
        if token.user_id == standing.user.user_id:
            own, its = set(standing.environment_ids), set(token.environment_ids)
            return not own or bool(its and its <= own)  # a token for one environment ends none that reaches further
        if not standing.rules or standing.environment_ids:
            return False
        return user is None or user.role != OWNER or standing.user.role == OWNER

    def _mine(self, standing: Standing, token_id: str) -> Token:
        """A token that the caller may change. NotFoundError: also for others', of which it need not know."""
        found = self._directory.tokens.get(token_id)
        if found is None or not self._may_change(standing, found):
            raise NotFoundError(f"there is no token {token_id[:80]!r} that you may change")
        return found

    def _environment_id(self, name: str) -> str:
        found = self._directory.environments.get(name)
        if found is None:
            raise NotFoundError(f"there is no environment {name[:80]!r}: see `cadenza environment list`")
        return found.environment_id

    def _names(self, environment_ids: Iterable[str]) -> tuple[str, ...]:
        return tuple(self._directory.environment_name(one) for one in environment_ids)

    def _info(self, one: Token) -> TokenInfo:
        user = self._directory.users[one.user_id]
        return TokenInfo(
            one.token_id, user.name, one.name, one.scopes, self._names(one.environment_ids), one.created_at,
            one.expires_at, one.used_at, one.disabled, user.service_user,
        )  # fmt: skip


def handlers(tokens: Tokens) -> dict[str, Any]:
    """This noun's rows of the table of methods."""
    return {
        "account.whoami": tokens.whoami,
        "token.create": tokens.create,
        "token.list": tokens.list,
        "token.delete": tokens.delete,
        "token.disable": tokens.disable,
    }
