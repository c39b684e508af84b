"""Hugging Face's own tests of a model, as far as they are published: `make check-hf` fetches and runs them.

The installed package has none of them. The source distribution has `ModelTesterMixin`, `ConfigTester` and
`TrainingTesterMixin`, but not the folders of `GenerationTesterMixin` and `ExportTesterMixin`, on which the first
depends by name only; what those test of generation is in `test_hf.py`.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any
from unittest import TestCase

import pytest
import torch

SOURCES = os.environ.get("SSMN_TRANSFORMERS_SOURCES")
if not SOURCES:
    pytest.skip("the tests of transformers are not here; `make check-hf` fetches them", allow_module_level=True)

import transformers  # noqa: E402

from ssmn.interfaces.hf import SSMNForCausalLM, SSMNTextConfig  # noqa: E402

sys.path.insert(0, SOURCES)
for absent, name in (
    ("tests.exporters.test_export", "ExportTesterMixin"),
    ("tests.generation.test_utils", "GenerationTesterMixin"),
    ("tests.utils.test_configuration_utils", "config_common_kwargs"),
):
    module = ModuleType(absent)
    setattr(module, name, {} if name == "config_common_kwargs" else type(name, (), {}))
    sys.modules[absent] = module
# It would load the package a second time, from the sources that stand around its tests.
transformers.utils.direct_transformers_import = lambda *_: transformers  # type: ignore[attr-defined]
ConfigTester = importlib.import_module("tests.test_configuration_common").ConfigTester
ModelTesterMixin = importlib.import_module("tests.test_modeling_common").ModelTesterMixin
TrainingTesterMixin = importlib.import_module("tests.test_training_mixin").TrainingTesterMixin

pytestmark = pytest.mark.filterwarnings("default")


class Tester:
    """The small model that the mixins ask for."""

    is_training = True
    batch_size, seq_length, hidden_size, vocab_size = 5, 7, 32, 99
    num_hidden_layers, num_attention_heads = 2, 2
    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def get_config(self) -> SSMNTextConfig:
        return SSMNTextConfig(
            vocab_size=self.vocab_size, hidden_dim=self.hidden_size, num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads, window_size=6, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self) -> tuple[SSMNTextConfig, dict[str, torch.Tensor]]:
        input_ids = torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class TestPublished(ModelTesterMixin, TrainingTesterMixin, TestCase):
    all_model_classes = (SSMNForCausalLM,)
    has_attentions = False

    def setUp(self) -> None:
        self.model_tester = Tester()

    def _prepare_for_class(self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False) -> Any:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, "labels": inputs["input_ids"]} if return_labels else inputs

    def test_config(self) -> None:
        ConfigTester(self, config_class=SSMNTextConfig, vocab_size=99).run_common_tests()

    @pytest.mark.skip("asks whether GenerationTesterMixin is here too; it is not published")
    def test_generation_tester_mixin_inheritance(self) -> None: ...
