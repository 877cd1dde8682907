"""OneFormer - One Transformer to Rule Universal Image Segmentation (Jain, Li, Chiu, Hassani,
Orlov, Shi, CVPR 2023, arXiv 2211.06220).

The idea: one network, trained once, does semantic, instance and panoptic segmentation. A sentence
("the task is panoptic") becomes a task token, from which the object queries are formed, and every
training picture's labels for the drawn task come from its panoptic annotation. A contrast between
queries and a list of texts that names the picture's masks teaches the queries tasks and classes.

    Q_task = MLP(ids of the task sentence)                      OneFormer.task_mlp    (sec. 3.1)
    labels of three tasks from panoptic ones                    oneformer_tasks.task_targets
    T_list -> Q_text: sentences, then learnt context rows       oneformer_text    (sec. 3.3, fig. 4)
    Q = [transformer(N - 1 x Q_task, map), Q_task]              Predictor.form_queries   (sec. 3.2)
    masked attention, three levels in turn                      Predictor.forward, allowed
    L = CE(Q Q_text / tau) over rows + over columns             contrastive_loss      (eq. 1, 2, 3)
    L_cls, L_bce, L_dice on matched queries, for every layer    oneformer_loss.joint_loss
    the three answers                                           oneformer_tasks, OneFormer.segment

Follow the code where it and the text differ: the text says that image features refine the task
token; in the code the VALUES of that cross attention are the sine positions alone, and the image,
added to the keys, only decides where a query looks. The task token is made of the raw ids, as
floats, 77 numbers into an MLP: there is no table of embeddings, and the LayerNorm that the
prediction heads use too takes the scale away.

Different from the release:
- backbone and pixel decoder are an argument, `pixels`: any module that gives three levels and mask
  features. `ConvPyramid` is a small one. Swin and multi-scale deformable attention are not here, so
  the converters (`oneformer_weights`) leave their weights out, and the parameter counts of whole
  models (219M with Swin-L) are not checked;
- the text encoder takes ids; CLIP's byte pairs are not shipped (`oneformer_text`);
- the contrast compares the pictures of this process, it gathers none from others;
- dropout falls on branches, not on attention weights.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn.checks import (
    check_axes,
    check_callable,
    check_heads,
    check_index,
    check_int,
    check_number,
    check_tokens,
    describe,
)
from .oneformer_nets import (
    MLP,
    CrossAttentionLayer,
    FFNLayer,
    QueryDecoder,
    QueryTransformer,
    SelfAttentionLayer,
    allowed,
    sine_positions,
)
from .oneformer_tasks import instances, panoptic_segments, semantic_scores
from .oneformer_text import TextMapper, check_task, task_ids

PAPER = "oneformer"
LEVELS = 3


class Prediction(NamedTuple):
    """What the queries say.

    Args:
        class_logits: (B, N, K + 1), the last class is "no object".
        mask_logits: (B, N, H, W), at the size of the mask features.
    """

    class_logits: Tensor
    mask_logits: Tensor


class Output(NamedTuple):
    """What a forward pass gives.

    Args:
        last: the prediction after the last layer.
        earlier: those before it, the first from the queries as formed (deep supervision).
        formed: (B, N, D), queries before the masked decoder: what the contrast sees.
        queries: (B, N, D), queries after the last layer.
        texts: (B, N, D), text queries, or None.
    """

    last: Prediction
    earlier: list[Prediction]
    formed: Tensor
    queries: Tensor
    texts: Tensor | None


# ------------------------------------------------------------------------------------ the contrast
def contrastive_loss(queries: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """Query-text contrast (eq. 1-3): each picture's queries, as ONE vector, against each text list.

        q_i = flat(Q_i) / |flat(Q_i)|        t_j likewise        s = min(exp(log_scale), 100)
        loss = mean_i CE(s q_i t, i) + mean_j CE(s q t_j, j)

    0 for a batch of one; 2 ln B if all pictures are alike.

    Args:
        queries: (B, N, D), as formed.
        texts: (B, N, D).
        log_scale: learnt scalar, ln(1 / 0.07) at first.
    """
    check_tokens(queries, name="queries")
    check_tokens(texts, name="texts")
    if queries.shape != texts.shape:
        shapes = tuple(queries.shape), tuple(texts.shape)
        raise ValueError(f"queries and texts have shapes {shapes} but need the same (B, N, D)")
    q, t = (F.normalize(x.flatten(1).float(), dim=1) for x in (queries, texts))
    logits = q @ t.T * log_scale.float().exp().clamp(max=100)                   # b b
    own = torch.arange(queries.shape[0], device=queries.device)
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)


# ----------------------------------------------------------------------------------- the predictor
class Predictor(nn.Module):
    """Queries from a task token, the masked decoder, and its heads.

    Args:
        num_classes: K, without "no object".
        num_queries: N, the task token's among them.
        embed_dim: D, of levels, mask features, task token and queries.
        num_heads: must divide D.
        hidden_dim: of feed-forward nets.
        num_layers: of the masked decoder (the release's DEC_LAYERS - 1).
        query_layers: of the transformer that forms the queries.
        dropout: in that transformer, in training.
    """

    def __init__(
        self,
        num_classes: int = 150,
        num_queries: int = 150,
        embed_dim: int = 256,
        num_heads: int = 8,
        hidden_dim: int = 2048,
        num_layers: int = 9,
        query_layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        num_classes = check_int(num_classes, "num_classes", 1)
        num_queries = check_int(num_queries, "num_queries", 2)
        num_layers = check_int(num_layers, "num_layers", 0)
        query_layers = check_int(query_layers, "query_layers", 1)
        hidden_dim = check_int(hidden_dim, "hidden_dim", 1)
        dropout = check_number(dropout, "dropout", 0, 1)
        embed_dim = check_heads(embed_dim, num_heads) * int(num_heads)
        self.embed_dim = embed_dim
        self.query_embed = nn.Embedding(num_queries, embed_dim)
        self.level_embed = nn.Embedding(LEVELS, embed_dim)
        self.class_input_proj = nn.Conv2d(embed_dim, embed_dim, 1)
        layers = QueryDecoder(embed_dim, num_heads, hidden_dim, query_layers, dropout)
        self.class_transformer = QueryTransformer(layers)
        every = range(num_layers)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(embed_dim, num_heads) for _ in every
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(embed_dim, num_heads) for _ in every
        )
        self.transformer_ffn_layers = nn.ModuleList(FFNLayer(embed_dim, hidden_dim) for _ in every)
        self.decoder_norm = nn.LayerNorm(embed_dim)
        self.class_embed = nn.Linear(embed_dim, num_classes + 1)
        self.mask_embed = MLP(embed_dim, embed_dim, embed_dim, 3)

    def form_queries(self, mask_features: Tensor, task_token: Tensor) -> Tensor:
        """The queries of a task in a picture, (B, N, D): N - 1 copies of the normed task token,
        told apart by their learnt positions, look at the map; the token itself is the last."""
        token = self.decoder_norm(task_token)[:, None]                          # b 1 d
        place = self.query_embed.weight[None, :-1]
        features = self.class_input_proj(mask_features)
        copies = token.expand(-1, place.shape[1], -1)
        objects = self.class_transformer(copies, place.to(token.dtype), features)
        return torch.cat([objects, token.to(objects.dtype)], dim=1)

    def predict(self, queries: Tensor, mask_features: Tensor) -> Prediction:
        """Class and mask of every query, the task token's too."""
        x = self.decoder_norm(queries)
        masks = torch.einsum("bnd,bdhw->bnhw", self.mask_embed(x), mask_features)
        return Prediction(self.class_embed(x), masks)

    def forward(
        self, levels: Sequence[Tensor], mask_features: Tensor, task_token: Tensor
    ) -> Output:
        """Three maps and a task to predictions.

        Args:
            levels: three maps (B, D, h, w), coarsest first.
            mask_features: (B, D, H, W).
            task_token: (B, D), before its norm.
        """
        self._check(levels, mask_features, task_token)
        queries = formed = self.form_queries(mask_features, task_token)
        memories, positions, sizes = self._memories(levels, formed.dtype)
        place = self.query_embed.weight[None].to(formed.dtype)
        predictions = [self.predict(queries, mask_features)]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            level = i % LEVELS
            mask = allowed(predictions[-1].mask_logits, sizes[level]).flatten(2)    # b n hw
            mask = mask | ~mask.any(dim=-1, keepdim=True)   # nothing allowed: look everywhere
            queries = cross_attention(
                queries, place, memories[level], positions[level], mask[:, None]
            )
            queries = feed_forward(self_attention(queries, place))
            predictions.append(self.predict(queries, mask_features))
        return Output(predictions[-1], predictions[:-1], formed, queries, None)

    def _memories(self, levels: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[Any], ...]:
        """Values (B, hw, D), sine positions (1, hw, D) and (h, w) of each level."""
        sizes = [(x.shape[2], x.shape[3]) for x in levels]
        pairs = zip(levels, self.level_embed.weight, strict=True)
        memories = [rearrange(x, "b d h w -> b (h w) d").to(dtype) + mark for x, mark in pairs]
        device = levels[0].device
        positions = [sine_positions(s, self.embed_dim, device)[None].to(dtype) for s in sizes]
        return memories, positions, sizes

    def _check(self, levels: Sequence[Tensor], mask_features: Tensor, task_token: Tensor) -> None:
        if not isinstance(levels, (list, tuple)) or len(levels) != LEVELS:
            raise ValueError(f"levels is {describe(levels)} but needs to be a list of {LEVELS}")
        named = [(x, f"levels[{i}]") for i, x in enumerate(levels)]
        for x, name in (*named, (mask_features, "mask_features")):
            check_axes(x, name, "(B, D, h, w)")
            if x.shape[1] != self.embed_dim:
                shape = tuple(x.shape)
                raise ValueError(f"{name} has shape {shape} but needs D = {self.embed_dim}")
        check_axes(task_token, "task_token", "(B, D)")
        if task_token.shape[1] != self.embed_dim:
            raise ValueError(f"task_token has shape {tuple(task_token.shape)}, D={self.embed_dim}")
        for x, name in (*named, (mask_features, "mask_features")):
            if x.shape[0] != task_token.shape[0]:
                told = f"{name} has {x.shape[0]} pictures but task_token {task_token.shape[0]}"
                raise ValueError(told)


# ------------------------------------------------------------------------------------ the whole
class OneFormer(nn.Module):
    """Picture and task to classes and masks.

    Args:
        pixels: images (B, 3, H, W) -> ([three levels, coarsest first], mask features), all of D
            channels.
        predictor: queries and heads.
        text: makes text queries of the picture's list, in training; None: no contrast. As many as
            there are queries.
        task_length: ids of the task sentence.
    """

    def __init__(
        self,
        pixels: nn.Module,
        predictor: Predictor,
        text: TextMapper | None = None,
        task_length: int = 77,
    ) -> None:
        super().__init__()
        check_callable(pixels, "pixels", "a module: images -> (levels, mask features)")
        if not isinstance(predictor, Predictor):
            raise ValueError(f"predictor is {describe(predictor)} but needs to be a Predictor")
        width = predictor.embed_dim
        if text is not None and text.text_projector.layers[0].in_features != width:
            raise ValueError(f"text has other channels than the predictor's {width}")
        self.pixels, self.predictor, self.text = pixels, predictor, text
        self.task_length = check_int(task_length, "task_length", 7)
        self.task_mlp = MLP(self.task_length, width, width, 2)
        if text is not None:
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def task_token(self, task: str | Sequence[str] | Tensor, images: Tensor) -> Tensor:
        """The task token (B, D), before its norm.

        Args:
            task: the name of one for all pictures, a list of names, or ids (B, task_length), which
                are plain numbers here (CLIP's go up to 49407).
            images: (B, ...); they say how many, where, and in which dtype.
        """
        batch = images.shape[0]
        if isinstance(task, Tensor):
            check_index(task, "task", "(B, L)", (batch, self.task_length))
            return self.task_mlp(task.to(images.dtype))
        names = [task] if isinstance(task, str) else list(task)
        if len(names) != batch and not isinstance(task, str):
            raise ValueError(f"task has {len(names)} names but there are {batch} pictures")
        ids = task_ids(names, self.task_length, images.device)
        return self.task_mlp(ids.to(images.dtype)).expand(batch, -1)

    def forward(
        self,
        images: Tensor,
        task: str | Sequence[str] | Tensor = "panoptic",
        text_ids: Tensor | None = None,
    ) -> Output:
        """images (B, 3, H, W) -> predictions; with `text_ids` also text queries.

        Args:
            images: in [0, 1], as `pixels` takes them.
            task: see `task_token`.
            text_ids: ids (B, N - N_ctx, L) of the pictures' texts, in training.
        """
        levels, mask_features = self.pixels(images)
        out = self.predictor(levels, mask_features, self.task_token(task, images))
        if text_ids is None:
            return out
        if self.text is None:
            raise ValueError("text_ids were given but the model was built with text=None")
        texts = self.text(text_ids)
        if texts.shape != out.formed.shape:
            raise ValueError(
                f"text_ids make {texts.shape[1]} texts with the context rows, in a batch of "
                f"{texts.shape[0]}, but there are {out.formed.shape[1]} queries in one of "
                f"{out.formed.shape[0]}"
            )
        return out._replace(texts=texts)

    def contrast(self, out: Output) -> Tensor:
        """`contrastive_loss` of an output with texts; its weight in the release is 0.5."""
        if out.texts is None:
            raise ValueError("out has no texts: call the model with text_ids")
        return contrastive_loss(out.formed, out.texts, self.logit_scale)

    def segment(self, images: Tensor, task: str, things: Collection[int], **options: Any) -> Any:
        """The task's answer at the size of the images: scores (B, K, H, W), `Panoptic` or
        `Instances`.

        Args:
            images: (B, 3, H, W).
            task: "semantic", "instance" or "panoptic".
            things: numbers of the classes that are things.
            options: of `panoptic_segments` or `instances`.
        """
        classes, masks = self(images, check_task(task)).last
        masks = F.interpolate(masks, size=images.shape[-2:], mode="bilinear", align_corners=False)
        if task == "semantic":
            return semantic_scores(classes, masks)
        answer = panoptic_segments if task == "panoptic" else instances
        return answer(classes, masks, things, **options)
