"""Secrets are hidden wherever they can stand, and nothing else is touched."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from archipelago.actors.exits import exit_codes
from archipelago.actors.logs import Discreet
from archipelago.pipeline.config import load, validate
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.redact import discreet, discreet_text, redacted
from archipelago.pipeline.store import RunFolder, resume

LEAKY = """
serving.url=http://user:hunter2@host:8000 does not answer
serving.url=http://user:hunter2@: cannot be reached
s3://KEY:hunter2@bucket/x
s3://KEY:hun/ter2hunter2@bucket/x
s3://KEY:hunter2/+=@bucket/x
postgresql://me:hun@hunter2@host/db
postgresql+psycopg2://me:hunter2@host/db?sslmode=require
mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Dsa%3BPWD%3Dhunter2%3BServer%3Dy
mssql+pyodbc:///?odbc_connect=Driver%3Dx%26Password%3Dhunter2
Server=tcp:x;Uid=sa;Pwd=hunter2;Encrypt=yes
Password='hunter2 b'; x
PWD = hunter2
DefaultEndpointsProtocol=https;AccountName=a;AccountKey=hunter2==;EndpointSuffix=core
https://x.blob/y?sv=1&sig=hunter2&se=3
https://x/y?X-Amz-Signature=hunter2&X-Amz-Credential=hunter2&X-Amz-Security-Token=hunter2
https://x/y#access_token=hunter2&x=1
https://x/?to%6ben=hunter2
https://x/?key=hunter2
https://x/?a=1;API-KEY=hunter2
redis://:hunter2@host
amqp://u:p?hunter2@h/
https://hunter2@host
git+https://hunter2@github.com/x
http://h/?redirect=http%3A%2F%2Fuser%3Ahunter2%40host
//user:hunter2@host/x
http://user:hunter2@[::1]:80/
{"password": "hunter2", "a": 1}
{'api_key': 'hunter2'}
{"client-secret":"hunter2"}
Authorization: Bearer hunter2abc
Authorization: Basic hunter2==
X-Api-Key: hunter2
Cookie: session=hunter2
--password hunter2 --x 3
--token=hunter2
AWS_SECRET_ACCESS_KEY=hunter2 python x
OPENAI_API_KEY='hunter2'
stream.options.hf_token=hunter2: unknown option
MY_PASSPHRASE=hunter2
sk-hunter2hunter2 is refused
sk-proj-abc_hunter2
hf_hunter2hunter2
ghp_hunter2hunter2
github_pat_11hunter2
glpat-hunter2hunter2
xoxb-12-hunter2
eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIhunter2.sig
-----BEGIN RSA PRIVATE KEY-----\\nhunter2\\n-----END RSA PRIVATE KEY-----
-----BEGIN PRIVATE KEY-----\\nhunter2
""".strip().splitlines()

PLAIN = """
write key=value, and quote a value: 'key="value"'
http://127.0.0.1:8000/a@b
http://host:5000/#/experiments/1
s3://bucket/a@b
postgresql://host/db?sslmode=require&keepalives=1
sqlite:////data/runs/mlflow.db
file:///data/x
training.steps=400: expected at least 1
identifier.signature=mean
max_tokens=32
an sk-learn model, task-3 and hf_hub
tokens: 32 of 77
/plain/path@1:2
the label 'key' is no class
stream.options.token: unknown option; known are a, b
python jobs/forget.py 'run_dir=/my run' task=flowers
sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c0f00a08
a beagle; tokens, keyboards, password managers
me@example.org
""".strip().splitlines()


@pytest.mark.parametrize("text", LEAKY)
def test_secrets_in_messages_are_hidden(text: str) -> None:
    hidden = discreet_text(text.replace("\\n", "\n"))
    assert "hunter2" not in hidden and "***" in hidden
    assert discreet_text(hidden).count("***") == hidden.count("***"), "once is enough"


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_stays(text: str) -> None:
    assert discreet_text(text) == text


def test_secret_names_hide_all_below_them() -> None:
    given = {
        "Credentials": {"user": "hunter2", "more": [1, "hunter2", {"x": "hunter2"}]},
        "API-KEY": ["hunter2", ("hunter2",)],
        "password": 12345,
        "awsSecretAccessKey": "hunter2",
        "pwd": {"a": {"b": "hunter2"}},
        "empty_token": "",
        "key": None,
        "max_tokens": 32,
        "keyboards": "of pianos",
        "monkey": "sits",
        "image_key": "image",
    }
    found = redacted({"options": given})["options"]
    assert "hunter2" not in json.dumps(found) and "12345" not in json.dumps(found)
    kept = ("empty_token", "key", "max_tokens", "keyboards", "monkey", "image_key")
    assert {key: found[key] for key in kept} == {key: given[key] for key in kept}


def test_settings_that_are_read_back_are_whole() -> None:
    names = ("keyboards", "keys", "token", "secrets", "passports", "password")
    words = [f'identifier.descriptions.{name}="{name}: a key, and token=s"' for name in names]
    words += ["stream.options.sets={keys: {path: a/b, label: token}}", "stream.order=[keys]"]
    settings = load(["stream=hf", "identifier=mllm", 'serving.url="http://host:8000/a@b"', *words])
    assert len(settings.multimodal.descriptions) == len(names)
    assert validate(json.loads(json.dumps(redacted(settings)))) == settings


def test_the_journal_holds_no_secret(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.journal.append("failed", reason="http://me:hunter2@host", more=[{"token": "hunter2"}], n=3)
    text = next((tmp_path / "run/journal").glob("*.json")).read_text()
    assert "hunter2" not in text and json.loads(text)["n"] == 3
    assert discreet({"task": "keyboards", "sha256": "ab12"}) == {
        "task": "keyboards",
        "sha256": "ab12",
    }


def test_the_last_word_of_a_job_holds_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_codes("job")
    def main(arguments: object) -> int:
        raise UserError("serving.url=http://me:hunter2@host: nobody answers")

    assert main([]) == 2
    said = capsys.readouterr().err
    assert "hunter2" not in said and "http://me:***@host" in said


def test_log_lines_and_tracebacks_hold_no_secret() -> None:
    try:
        raise OSError("cannot open s3://k:hunter2@bucket")
    except OSError as error:
        record = logging.LogRecord(
            "x",
            logging.ERROR,
            __file__,
            1,
            "at %s",
            ("https://hunter2@host",),
            (type(error), error, error.__traceback__),
        )
    line = Discreet("%(message)s").format(record)
    assert "hunter2" not in line and "s3://k:***@bucket" in line and "https://***@host" in line


def test_what_was_hidden_is_not_compared_on_resume() -> None:
    facts = {"backbone": {}, "stream": {"tasks": ["a"]}, "kernels": {}, "versions": {}}
    old = {**facts, "config": {"identifier": {"descriptions": {"keys": "***"}}}, "tracking": {}}
    new = {
        **facts,
        "config": {"identifier": {"descriptions": {"keys": "of doors"}}},
        "tracking": {},
    }
    assert resume.merge(old, new)["config"] == new["config"]
    old["config"] = {"identifier": {"descriptions": {"keys": "of pianos"}}}
    with pytest.raises(UserError, match=r"identifier\.descriptions\.keys was 'of pianos'"):
        resume.merge(old, new)
