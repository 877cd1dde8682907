"""Teachers: frozen, no gradients, one feature a patch."""

import pytest
import torch

from tests.hub.tiny import make_dinov2
from vtlib.hub.teacher import DinoTeacher
from vtlib.tokenizers import course_teacher


@pytest.fixture(scope="module", params=["course", "dino"])
def teacher(request):
    if request.param == "course":
        return course_teacher()
    torch.manual_seed(0)
    return DinoTeacher(make_dinov2())


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


def test_a_feature_a_patch_and_no_gradient(teacher, images):
    features, summary = teacher(images.requires_grad_(), summary=True)
    assert features.shape == (2, 48, teacher.dim) and summary.shape == (2, teacher.dim)
    assert not features.requires_grad and not summary.requires_grad
    assert torch.equal(teacher(images), features)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.train().training
    assert not any(module.training for module in teacher.children())


def test_features_lie_where_the_patches_are(teacher, images):
    changed = images.detach().clone()
    changed[..., 40:56, 24:40] = 1 - changed[..., 40:56, 24:40]        # rows 5 and 6, columns 3, 4
    moved = (teacher(changed) - teacher(images)).norm(dim=-1).reshape(2, 8, 6)
    inside = moved[:, 5:7, 3:5].mean()
    assert inside > 1.2 * (moved.sum(dim=(1, 2)) - moved[:, 5:7, 3:5].sum(dim=(1, 2))).mean() / 44


def test_bad_input(teacher, images):
    with pytest.raises(ValueError, match="multiple"):
        teacher(images[..., :-4])
    with pytest.raises(ValueError, match="images"):
        teacher(images[:, :1])
    with pytest.raises(ValueError, match="summary"):
        teacher(images, summary="yes")
