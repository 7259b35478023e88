"""What a config carries of plugins: for our own next process, and for nobody else to see."""

from __future__ import annotations

import json

import pytest

from config.kit import Folder
from lb.config.doc import show
from lb.config.load import Loaded
from lb.config.parse import loaded_from_plain, loaded_to_plain
from lb.config.secrets import MARKED

SECRETS = ("first secret of all", "second secret of all", "third secret of all")
USES = f"""
[plugins]
use = [{{ use = "sticky", secret = ["{SECRETS[0]}", "{SECRETS[1]}"] }}]
[listener.web]
address = "127.0.0.1:1"
upstream = "app"
plugins = [{{ use = "sticky", secret = "{SECRETS[2]}" }}, "request_id"]
[upstream.app]
backends = ["127.0.0.1:2"]
"""


@pytest.fixture
def loaded(folder: Folder) -> Loaded:
    return folder.load(USES)


def test_nobody_is_shown_secrets_or_code(loaded: Loaded) -> None:
    shown = [
        show(loaded.config),
        loaded.config.model_dump_json(),
        json.dumps(loaded.config.model_dump(mode="json", context=MARKED)),
    ]
    for text in shown:
        assert not [secret for secret in SECRETS if secret in text]
        assert "class Sticky" not in text
        assert '"*' not in text.replace('"***', "")


def test_secrets_that_differ_differ_for_who_compares(loaded: Loaded) -> None:
    marked = loaded.config.model_dump(mode="json", context=MARKED)
    one, two = marked["plugins"]["use"][0]["secret"]
    assert one != two
    assert set(marked["plugins"]["code"]) == {"sticky", "request_id"}


def test_all_of_it_reaches_our_own_next_process(loaded: Loaded) -> None:
    again = loaded_from_plain(json.loads(json.dumps(loaded_to_plain(loaded))))
    assert again.config == loaded.config
    assert again.config.plugins.use[0].values == loaded.config.plugins.use[0].values
    assert "class Sticky" in again.config.plugins.code["sticky"]["source"]


def test_our_own_keys_cannot_be_written(folder: Folder) -> None:
    (problem,) = folder.errors(
        USES.replace('"request_id"]', '{ use = "request_id", "*values" = {} }]')
    )
    assert problem.message == '"*values" is no key'
