"""A FastAPI application as people write them, for uvicorn."""

from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel


class Item(BaseModel):
    name: str
    price: float


@asynccontextmanager
async def lifespan(_):
    print("opened", flush=True)
    yield
    print("closed", flush=True)


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def hello(name: str):
    return {"hello": name}


@app.post("/items", status_code=201)
async def add(item: Item):
    return {"name": item.name, "gross": round(item.price * 1.25, 2)}
