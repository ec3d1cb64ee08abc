"""FastAPI + uvicorn: `uvicorn over_fastapi:app --workers 2`."""

from fastapi import FastAPI, Request, Response

from bench.parts.plainly import Model

app = FastAPI()
model = Model()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """One row."""
    return Response(model.answer(await request.body()), media_type="application/json")
