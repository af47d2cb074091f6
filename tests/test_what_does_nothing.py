"""Whatever a user sets has an effect or is refused, by its name and with the nearest one that there is."""

import copy
import json
import pickle

import numpy as np
import pytest
from refusal import beginning, exactly, refuses

import fastadam

MISTAKES = {
    "weight_deacy": "weight_decay",
    "learning_rate": "lr",
    "lr_scale": "lr",
    "wd": "weight_decay",
    "beta": "betas",
    "beta1": "betas",
    "epsilon": "eps",
    "maximise": "maximize",
    "amsgrads": "amsgrad",
    "decoupled_decay": "decoupled_weight_decay",
    "max_gradnorm": "max_grad_norm",
    "clip_norm": "max_grad_norm",
    "max_norm": "max_grad_norm",
    "clipnorm": "max_grad_norm_per_param",
    "global_clipnorm": "max_grad_norm",
    "moments_dtype": "moment_dtype",
}


def optimizer():
    return fastadam.Adam({"w": np.ones(3)})


@pytest.mark.parametrize("key", MISTAKES)
def test_a_key_of_a_group_that_resembles_a_setting(key):
    message = exactly(f"`{key}` is no setting of a group, and would do nothing. Did you mean `{MISTAKES[key]}`?")
    opt, params, added = optimizer(), {"w": np.ones(3)}, {"v": np.ones(2)}
    refuses(lambda: fastadam.Adam([{"params": params, key: 0.1}]), TypeError, message, params)
    refuses(lambda: opt.add_param_group({"params": added, key: 0.1}), TypeError, message, opt, added)
    refuses(lambda: opt.param_groups[0].update({key: 0.1, "lr": 0.5}), TypeError, message, opt)
    refuses(lambda: opt.param_groups[0].setdefault(key, 0.1), TypeError, message, opt)
    refuses(lambda: opt.param_groups[0].__ior__({key: 0.1}), TypeError, message, opt)


def test_keys_of_schedulers_and_labels_are_kept():
    keys = "initial_lr name swa_lr max_lr min_lr base_momentum max_momentum foreach fused capturable differentiable"
    keys = [*keys.split(), "param_names", "label", "layer", "role"]
    opt = fastadam.Adam([{"params": {"w": np.ones(3)}, **dict.fromkeys(keys, 1.0)}])
    opt.param_groups[0].update(dict.fromkeys(keys, 2.0))
    assert {opt.param_groups[0].pop(key) for key in keys} == {2.0}
    assert opt.param_groups[0].pop("label", None) is None


ATTRIBUTES = {
    "lr": "`lr` is no attribute that can be assigned: assign `param_groups[...]['lr']`",
    "learning_rate": "`learning_rate` is no attribute that can be assigned: assign `param_groups[...]['lr']`",
    "weight_deacy": "`weight_deacy` is no attribute that can be assigned: assign `param_groups[...]['weight_decay']`",
    "max_grad_norm": "`max_grad_norm` is chosen when an optimizer is made, and cannot be assigned",
    "grads": "`grads` cannot be assigned",
    "params": "`params` cannot be assigned",
    "param_groups": "`param_groups` cannot be assigned",
    "thing": "`thing` is no attribute that can be assigned",
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_that_would_do_nothing(name):
    opt = optimizer()
    refuses(lambda: setattr(opt, name, 0.0), AttributeError, exactly(ATTRIBUTES[name]), opt)


def test_methods_may_be_wrapped():
    opt, calls = optimizer(), []
    step = opt.step
    opt.step = lambda *arguments: calls.append(step(*arguments))
    opt.step({"w": np.ones(3)})
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("key", "nearest"), [("max_gradnorm", "max_grad_norm"), ("weight_deacy", "weight_decay"), ("flatt", "flat")]
)
def test_an_option_that_is_misspelt(key, nearest):
    message = exactly(f"Adam() got an unexpected keyword argument {key!r}. Did you mean {nearest!r}?")
    refuses(lambda: fastadam.Adam({"w": np.ones(3)}, **{key: 1.0}), TypeError, message)


ALIASES = {
    "learning_rate": "lr",
    "epsilon": "eps",
    "b1": "betas",
    "beta_2": "betas",
    "wd": "weight_decay",
    "clip_norm": "max_grad_norm",
    "global_clipnorm": "max_grad_norm",
    "max_norm": "max_grad_norm",
    "clipnorm": "max_grad_norm_per_param",
    "grad_clip": "max_grad_norm_per_param",
}


@pytest.mark.parametrize("name", ALIASES)
def test_the_name_of_an_argument_in_another_library(name):
    message = exactly(f"AdamW() got an unexpected keyword argument {name!r}. Did you mean {ALIASES[name]!r}?")
    refuses(lambda: fastadam.AdamW([np.ones(3)], **{name: 1.0}), TypeError, message)


def test_an_alias_of_what_a_member_lacks_is_not_suggested():
    message = exactly("Lion() got an unexpected keyword argument 'epsilon'")
    refuses(lambda: fastadam.Lion([np.ones(3)], epsilon=1e-8), TypeError, message)


def test_an_argument_of_adam_step_that_is_misspelt():
    arrays = [np.ones(3) for _ in range(4)]
    message = beginning("adam_step() got an unexpected keyword argument 'clip_vallue'. Did you mean 'clip_value'?")
    refuses(lambda: fastadam.adam_step(*arrays, step=1, clip_vallue=1.0), TypeError, message, *arrays)


def test_settings_of_another_member_are_not_loaded():
    nadam, adam = fastadam.NAdam({"w": np.ones(3)}), optimizer()
    state = nadam.state_dict()
    assert "momentum_decay" in state["param_groups"][0]
    adam.load_state_dict(state, strict=False)


# --- groups are dicts, and their copies are plain ones


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, dict, lambda group: group.copy(), lambda group: pickle.loads(pickle.dumps(group))],
)
def test_copies_of_groups_are_plain_values(copied):
    opt = fastadam.Adam({"w": np.ones(3)}, lr=0.25)
    found = copied(opt.param_groups[0])
    assert type(found) is dict
    assert found == opt.param_groups[0]
    found["lr"] = 1.0
    assert opt.param_groups[0]["lr"] == 0.25
    assert [type(group) for group in copy.deepcopy(opt.param_groups)] == [dict]


def test_groups_are_written_as_json():
    opt = fastadam.Adam({"w": np.ones(3)}, lr=0.25)
    found = json.loads(json.dumps(opt.param_groups))
    assert found[0]["lr"] == 0.25
    assert found[0]["params"] == ["w"]


def test_settings_of_a_group_cannot_be_removed():
    opt = optimizer()
    for remove in (lambda g: g.pop("lr"), lambda g: g.popitem(), lambda g: g.clear(), lambda g: g.__delitem__("eps")):
        refuses(lambda remove=remove: remove(opt.param_groups[0]), TypeError, "part of every parameter group", opt)
    with pytest.raises(KeyError):
        opt.param_groups[0].pop("label")


def test_groups_merge_like_dicts():
    group = optimizer().param_groups[0]
    assert (group | {"lr": 0.5})["lr"] == 0.5
    group |= {"lr": 0.5}
    assert group["lr"] == {**group}["lr"] == 0.5
