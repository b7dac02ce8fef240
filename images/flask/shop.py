"""A Flask application as people write them, for gunicorn."""

import os
import sys

import loky
from flask import Flask, jsonify, request

app = Flask(__name__)


@app.get("/")
def hello():
    return f"hello from flask, {request.args.get('name')}"


@app.post("/orders")
def order():
    print("order for", request.json["item"], file=sys.stderr, flush=True)
    return jsonify(item=request.json["item"], worker=os.getpid()), 201, {"X-Served-By": "flask"}


@app.get("/limits")
def limits():
    return jsonify(processors=loky.cpu_count(), workers=os.environ["WEB_CONCURRENCY"])
