"""Plausible wrong answers to the exercises of glotok.py, with what the check must say."""

from tests.teach.slips import changed, slips

SOFT = '''
import torch
import torch.nn.functional as F
def soft_histogram(tokens, num_bins, sharpness):
    units = F.normalize(tokens, dim=1)
    cosine = units @ units.T
    rows, columns = torch.triu_indices(len(tokens), len(tokens))
    values = cosine[rows, columns]
    centres = torch.linspace(-1, 1, num_bins, dtype=tokens.dtype)
    gap = values[:, None] - centres
    bumps = torch.exp(-sharpness * gap ** 2)
    sums = bumps.sum(dim=0)
    return sums / sums.sum()
'''
UNITS = "units = F.normalize(tokens, dim=1)"
PAIRS = "torch.triu_indices(len(tokens), len(tokens))"

LOSS = '''
import torch
from vtlib.tokenizers import soft_histogram
def histogram_loss(codebook, teacher, sharpness, eps):
    student = soft_histogram(codebook, len(teacher), sharpness) + eps
    target = teacher.detach() + eps
    return (target * (target / student).log()).sum()
'''
STUDENT = "soft_histogram(codebook, len(teacher), sharpness) + eps"
TERMS = "(target * (target / student).log()).sum()"

RESIDUAL = '''
def residual_loss(latents, codes, residual):
    return (latents.detach() - codes - residual(codes)).square().mean()
'''
WHOLE = "(latents.detach() - codes - residual(codes)).square().mean()"

WRONG = {
    "glotok.soft_histogram": slips(
        SOFT,
        ("inner products", UNITS, "units = tokens", "inner products"),
        ("without self-pairs", PAIRS, PAIRS.replace("tokens))", "tokens), 1)"), "with itself"),
        ("all pairs", "cosine[rows, columns]", "cosine.flatten()", "counts twice"),
        ("from 0", "linspace(-1, 1,", "linspace(0, 1,", "may be negative"),
        ("a squared", "-sharpness * gap ** 2", "-(sharpness * gap) ** 2", "was squared as well"),
        ("no a", "-sharpness * gap ** 2", "-gap ** 2", "a is missing"),
        ("sum", "sums / sums.sum()", "sums", "divide by the sum"),
        ("each pair", "sums = bumps.sum(dim=0)",
         "sums = (bumps / bumps.sum(dim=1, keepdim=True)).sum(dim=0)", "each pair"),
    ),
    "glotok.histogram_loss": [
        *slips(
            LOSS,
            ("other way", TERMS, "(student * (student / target).log()).sum()", "other way round"),
            ("mean", TERMS, TERMS.replace(".sum()", ".mean()"), "the mean over bins"),
            ("sign", TERMS, "(target * (student / target).log()).sum()", "the sign"),
            ("cross-entropy", TERMS, "(target * student.log()).sum()", "log P_t is missing"),
            ("square", TERMS, "(target - student).square().sum()", "squared distance"),
            ("student's eps", "teacher.detach() + eps", "teacher.detach()", "student only"),
            ("teacher's eps", STUDENT, STUDENT.replace(" + eps", ""), "teacher only"),
            ("teacher learns", "teacher.detach()", "teacher", "reaches the teacher"),
            ("codebook fixed", "soft_histogram(codebook,", "soft_histogram(codebook.detach(),",
             "no gradient reaches the codebook"),
        ),
        ("no eps", changed(LOSS, STUDENT, STUDENT.replace(" + eps", "")).replace(
            "teacher.detach() + eps", "teacher.detach()"), "eps is missing"),
    ],
    "glotok.residual_loss": slips(
        RESIDUAL,
        ("sees latents", "residual(codes)", "residual(latents.detach())", "shown the latents"),
        ("sees the rest", "residual(codes)", "residual(latents.detach() - codes)",
         "what is missing"),
        ("codes left out", " - codes -", " -", "codes themselves"),
        ("wrong side", "codes - residual", "codes + residual", "wrong side"),
        ("sum", ".mean()", ".sum()", "the sum of squares"),
        ("absolute", ".square()", ".abs()", "absolute values"),
        ("no stop", "latents.detach() - codes", "latents - codes", "reaches the latents"),
        ("codes stopped", WHOLE,
         "(latents.detach() - codes.detach() - residual(codes.detach())).square().mean()",
         "no gradient reaches the codes"),
    ),
}
