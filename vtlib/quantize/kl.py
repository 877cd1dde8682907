"""The continuous bottleneck: a diagonal Gaussian for each latent, kept near N(0, 1) by its KL.

Kingma, Welling, "Auto-Encoding Variational Bayes", 2013, arXiv 1312.6114, as in Rombach et al.,
"High-Resolution Image Synthesis with Latent Diffusion Models", 2021, arXiv 2112.10752.

    mean, logvar = the two halves of the encoder's channels,  logvar clamped to [-30, 20]
    z = mean + exp(logvar / 2) noise                                          `sample`
    KL(q | N(0, 1)) = 1/2 sum (mean^2 + exp(logvar) - 1 - logvar)             `kl`, nats a picture

This is no quantiser: latents stay real numbers, so there are no indices, no usage and no
`decode(indices)`, and the result is `Sampled`, with codes and loss under the names of `Quantized`.
`vtlib.quantize.dimwise` makes indices of such latents without training again.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..nn.checks import check_finite, check_flag, check_float, check_generator, check_number
from ..tokens.precision import widen
from .contract import check_counted

LOGVAR = -30.0, 20.0


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent Gaussians, one a latent, channels last.

    Args:
        mean: (B, ..., C), float32 at least.
        logvar: (B, ..., C), log of the variances.
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, parameters: Tensor) -> "DiagonalGaussian":
        """parameters (B, ..., 2 C), means before log-variances -> the Gaussians (B, ..., C), the
        log-variances clamped to [-30, 20], in float32 at least.

        ValueError: not floating, not finite, empty, one axis only, or an odd number of channels.
        """
        check_float(parameters, "parameters")
        shape = tuple(parameters.shape)
        if len(shape) < 2 or 0 in shape or shape[-1] % 2:
            raise ValueError(
                f"parameters has shape {shape} but needs (B, ..., 2 C), not empty: as many means "
                f"as log-variances, channels last"
            )
        check_finite(parameters, "parameters")
        mean, logvar = widen(parameters).chunk(2, dim=-1)
        return cls(mean, logvar.clamp(*LOGVAR))

    @property
    def std(self) -> Tensor:
        """Deviations (B, ..., C)."""
        return torch.exp(self.logvar / 2)

    @property
    def var(self) -> Tensor:
        """Variances (B, ..., C)."""
        return torch.exp(self.logvar)

    def mode(self) -> Tensor:
        """The most likely latents (B, ..., C): the means."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Latents (B, ..., C), mean + deviation * noise, with gradients to both.

        generator: where the noise comes from, on the latents' device; None: torch's own numbers.
        """
        check_generator(generator, optional=True)
        # torch.randn with a generator takes no free size in torch.export; the numbers are its own
        noise = self.mean.new_empty(self.mean.shape).normal_(generator=generator)
        return self.mean + self.std * noise

    def kl(
        self, other: "DiagonalGaussian | None" = None, mask: Tensor | None = None
    ) -> Tensor:
        """KL(self | other) of each picture, (B,) in nats: summed over all its latents.

        Args:
            other: what to compare with; None: N(0, 1).
            mask: (B, ...) bool, False for tokens that do not count; None: all count.
        """
        if other is None:
            terms = self.mean**2 + torch.expm1(self.logvar) - self.logvar
        else:
            check_gaussian(other, self.mean.shape)
            change = self.logvar - other.logvar
            terms = (self.mean - other.mean) ** 2 / other.var + torch.expm1(change) - change
        return self._total(terms, mask) / 2

    def nll(self, latents: Tensor, mask: Tensor | None = None) -> Tensor:
        """-log density of `latents` (B, ..., C), (B,) in nats.

        mask: (B, ...) bool, False for tokens that do not count; None: all count.
        """
        check_float(latents, "latents")
        if latents.shape != self.mean.shape:
            raise ValueError(
                f"latents has shape {tuple(latents.shape)} but needs {tuple(self.mean.shape)}"
            )
        distance = (latents - self.mean) ** 2 / self.var
        return self._total(math.log(2 * math.pi) + self.logvar + distance, mask) / 2

    def _total(self, terms: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            check_counted(mask, terms.shape[:-1])
            terms = torch.where(mask[..., None], terms, 0)
        return terms.flatten(1).sum(dim=1)


def check_gaussian(other: object, shape: torch.Size) -> None:
    """Raise unless `other` is a DiagonalGaussian of this shape."""
    if not isinstance(other, DiagonalGaussian):
        raise ValueError(f"other is a {type(other).__name__}: needs a DiagonalGaussian")
    if other.mean.shape != shape:
        raise ValueError(f"other has shape {tuple(other.mean.shape)} but needs {tuple(shape)}")


@dataclass(frozen=True)
class Sampled:
    """The result of `KLBottleneck`, for parameters (B, ..., 2 C). It has no indices.

    Args:
        codes: (B, ..., C), the latents: a sample, or the means. Gradients pass to the parameters.
        loss: 0-dim, weight * KL, the mean over pictures.
        posterior: the Gaussians themselves.
    """

    codes: Tensor
    loss: Tensor
    posterior: DiagonalGaussian


class KLBottleneck(nn.Module):
    """parameters (B, ..., 2 C) -> `Sampled`, without a parameter of its own.

    Args:
        weight: of the KL, which is in nats a picture; latent diffusion's autoencoders use 1e-6.

    Training samples; evaluation gives the means, and the same loss. Codes have the dtype of the
    input, the loss is in float32 at least. ValueError: as in `DiagonalGaussian.of`.
    """

    def __init__(self, weight: float = 1e-6) -> None:
        super().__init__()
        self.weight = check_number(weight, "weight", 0)

    def extra_repr(self) -> str:
        return f"weight={self.weight}"

    def forward(
        self,
        parameters: Tensor,
        mask: Tensor | None = None,
        sample: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> Sampled:
        """The latents and what their KL costs.

        Args:
            parameters: (B, ..., 2 C), means before log-variances.
            mask: (B, ...) bool, False for tokens whose KL does not count; None: all count.
            sample: whether to sample; None: in training.
            generator: for the sample.
        """
        posterior = DiagonalGaussian.of(parameters)
        draw = self.training if sample is None else check_flag(sample, "sample")
        check_generator(generator, optional=True)
        codes = posterior.sample(generator) if draw else posterior.mode()
        loss = self.weight * posterior.kl(mask=mask).mean()
        return Sampled(codes.to(parameters.dtype), loss, posterior)
