"""Who gets through each gRPC method: every method of the service without a token, with a wrong one, with each role."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from test_grpc import Call, run
from tiny import Project

from ct.governance import access
from ct.governance.access import ROLES, may
from ct.serving.grpc_messages import METHODS

NEEDED = {
    "ServerLive": "",
    "ServerReady": "",
    "ModelReady": "",
    "ServerMetadata": "read",
    "ModelMetadata": "read",
    "ModelInfer": "predict",
}
DENIED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def test_the_table_names_every_method() -> None:
    assert set(NEEDED) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_asks_for_its_role(project: Project, method: str) -> None:
    project.first()
    secrets = {role: access.create(project.journal, f"a-{role}", role)[1] for role in ROLES}
    revoked = access.create(project.journal, "revoked", "admin")[1]
    access.revoke(project.journal, "revoked")
    near = secrets["admin"][:-1] + ("0" if secrets["admin"][-1] != "0" else "1")

    async def code(call: Call, token: str) -> tuple[grpc.StatusCode, str]:
        fields: dict[str, Any] = {"name": "tiny"} if method.startswith("Model") and method != "ModelInfer" else {}
        try:
            await call(method, token=token, **fields)
        except grpc.aio.AioRpcError as error:
            return error.code(), str(error.details())
        return grpc.StatusCode.OK, ""

    async def act(call: Call) -> None:
        wrong = [await code(call, token) for token in ("", "ct_x", near, revoked)]
        assert len(set(wrong)) == 1, "refusals cannot be told apart"
        assert wrong[0][0] is (grpc.StatusCode.UNAUTHENTICATED if NEEDED[method] else grpc.StatusCode.OK)
        for role, secret in secrets.items():
            found, said = await code(call, secret)
            if may(role, NEEDED[method]):
                assert found not in DENIED, role
            else:
                assert found is grpc.StatusCode.PERMISSION_DENIED, role
            assert secret not in said

    run(project, act)
