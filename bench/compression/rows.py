"""The rows of the tables: which changed models are compared, as data."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KV_ROWS", "LLAMA_ROWS", "WEIGHT_ROWS", "Row", "rows_of"]

MODELS = ("tiny", "tiny_moe")
EMBEDDING = "i8<g32>"


@dataclass(frozen=True)
class Row:
    """One changed model.

    Attributes:
        name: unique, what the table and the bars call it.
        family: the series of the picture it belongs to.
        passes: as on the command line; empty for llama.cpp's formats.
        form: llama.cpp's format of every weight but the embedding.
        embedding: its format of the embedding; ours is in ``passes``.
        models: the models it is measured on.
        label: what a picture writes beside the point; empty writes nothing.
        weights: whether it changes weights (else states).
        curve: whether it stands against llama.cpp's formats.
        train: processor seconds of training in its types before it is rounded; 0 trains nothing.
    """

    name: str
    family: str
    passes: tuple[str, ...] = ()
    form: str = ""
    embedding: str = ""
    models: tuple[str, ...] = MODELS
    label: str = ""
    weights: bool = True
    curve: bool = True
    train: float = 0.0


_METHODS = {"rtn": "round to nearest", "hqq": "HQQ", "awq": "AWQ", "gptq": "GPTQ"}


def _packed(
    name: str, family: str, label: str = "", curve: bool = True, train: float = 0.0, **options: object
) -> Row:
    """Return a row of ``int4-packing``; the embedding has llama.cpp's Q8_0 storage, i8 in groups of 32."""
    given = {"embedding": EMBEDDING, **options}
    text = ", ".join(f"{k}={v}" for k, v in given.items())
    return Row(name, family, (f"int4-packing{{{text}}}",), label=label, curve=curve, train=train)


def _weights(method: str, kind: str, group: int, *words: str, family: str = "", label: str = "") -> Row:
    """Return a row with every matrix in one type, such as ``gptq i4<g64, asym>``; ``words`` are asym and s4."""
    type = f"{kind}<{', '.join((f'g{group}', *words))}>"
    options: dict[str, object] = {"method": method, "kind": kind, "group": group}
    options |= {"asym": "true"} if "asym" in words else {}
    options |= {"scale": "s4"} if "s4" in words else {}
    return _packed(f"{method} {type}", family or _METHODS[method], label, **options)


def _states(name: str, family: str, options: str, models: tuple[str, ...] = MODELS, label: str = "") -> Row:
    return Row(name, family, (f"kv-quant{{{options}}}",), weights=False, models=models, label=label or name)


#: every weight of two dims but routers in one format, the embedding in Q8_0
LLAMA_ROWS: tuple[Row, ...] = tuple(
    Row(form, "llama.cpp", form=form, embedding="Q8_0", label=form)
    for form in ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q3_K", "Q2_K")
)

WEIGHT_ROWS: tuple[Row, ...] = (
    _weights("rtn", "i8", 64, label="i8 g64"),
    _weights("gptq", "i8", 32, label="i8 g32"),
    _weights("gptq", "i6", 64, "asym", label="i6 g64"),
    _weights("gptq", "i5", 64, "asym", label="i5 g64"),
    _weights("gptq", "i4", 64, "asym", label="i4 g64"),
    _weights("rtn", "i4", 64, "asym", label="i4 g64"),
    _weights("gptq", "i3", 64, "asym", label="i3 g64"),
    _weights("gptq", "i3", 128, "asym", label="i3 g128"),
    _weights("rtn", "i3", 64, "asym", label="i3 g64"),
    _weights("gptq", "i2", 64, "asym", label="i2 g64"),
    _weights("gptq", "i2", 32, "asym", label="i2 g32"),
    _weights("rtn", "i2", 32, "asym", label="i2 g32"),
    _weights("hqq", "i4", 64, "asym"),
    _weights("awq", "i4", 64, "asym"),
    _packed("mixed 3.5 bits", "mixed", "3.5 bits", method="gptq", asym="true", mix="[i3, i4]", bits=3.5),
    _packed("reversed 3.5 bits", "mixed", "reversed", method="gptq", asym="true", mix="[i3, i4]", bits=3.5,
            reverse="true"),
    _weights("rtn", "i4", 32),
    _weights("rtn", "i4", 32, "s4"),
    _weights("gptq", "i4", 32),
    _weights("gptq", "i4", 32, "s4", label="i4 g32 s4"),
    _weights("rtn", "t2", 64, family="ternary", label="t2 g64"),
    _weights("gptq", "t2", 64, family="ternary", label="t2 GPTQ"),
    _packed("qat t2<g64>", "ternary", "t2 trained", train=120.0, method="rtn", kind="t2", group=64),
    _weights("rtn", "nf4", 64, family="nf4, fp4", label="nf4 g64"),
    _weights("rtn", "fp4", 32, family="nf4, fp4", label="fp4 g32"),
    _weights("gptq", "nf4", 64, family="nf4, fp4", label="nf4 GPTQ"),
    _weights("gptq", "i4", 128, "asym", label="i4 g128"),
    _weights("gptq", "i4", 32, "asym"),
    _weights("rtn", "i4", 64),
    _weights("rtn", "i4", 128),
    _weights("rtn", "i4", 32, "asym"),
    _weights("rtn", "i4", 128, "asym"),
    _weights("hqq", "i4", 32, "asym"),
    _weights("hqq", "i4", 128, "asym"),
    _weights("awq", "i4", 32, "asym"),
    _weights("awq", "i4", 128, "asym"),
    _weights("hqq", "i3", 64, "asym"),
    _weights("awq", "i3", 64, "asym"),
    _weights("hqq", "i2", 32, "asym"),
    _weights("awq", "i2", 32, "asym"),
    _packed("gptq i4, embedding too", "GPTQ", "i4, embedding too", method="gptq", kind="i4", group=64, asym="true",
            embedding="i4<g64, asym>"),
)

KV_ROWS: tuple[Row, ...] = (
    _states("u8 g64", "per token", "bits=8, group=64"),
    _states("i4 g64, newest 32", "newest in f16", "bits=4, group=64", label="newest 32"),
    _states("i4 g64 asym", "per token", "bits=4, group=64, recent=0"),
    _states("u8 static per channel", "static", "bits=8, scales=static, per=channel", label="u8 per channel"),
    _states("K i4 per channel, V i4", "per channel", "bits=4, keys=channel, group=64", ("tiny",), label="K i4"),
    _states("latent i4 per channel", "per channel", "bits=4, keys=channel, group=64", ("tiny_moe",), label="i4"),
    _states("i4 g64, newest 16", "newest in f16", "bits=4, group=64, keep=16", label="16"),
    _states("i4 g64, newest 64", "newest in f16", "bits=4, group=64, keep=64", label="64"),
    _states("i4 g64 asym, rope i8", "latent", "bits=4, group=64, rope=i8, recent=0", ("tiny_moe",)),
    _states("i4 static per channel", "static", "bits=4, scales=static, per=channel", label="i4 per channel"),
    _states("nf4 g64", "per token", "bits=4, kind=nf4, group=64, recent=0"),
    _states("i2 g32 asym", "per token", "bits=2, group=32, recent=0"),
    _states("i2 g32, newest 32", "newest in f16", "bits=2, group=32", label="i2, newest 32"),
    _states("K i2 per channel, V i2", "per channel", "bits=2, keys=channel, group=32", ("tiny",), label="K i2"),
    _states("latent i2 per channel", "per channel", "bits=2, keys=channel, group=32", ("tiny_moe",), label="i2"),
    _states("i4 g32 asym", "per token", "bits=4, group=32, recent=0"),
    _states("i4 g64 sym", "per token", "bits=4, group=64, symmetric=true, recent=0"),
    _states("K u8, V i4", "per token", "bits=4, key_bits=8, group=64, recent=0", ("tiny",)),
    _states("u8 static per head", "static", "bits=8, scales=static, per=head", label="u8 per head"),
    _states("i4 static per head", "static", "bits=4, scales=static, per=head", label="i4 per head"),
)


def rows_of(model: str, only: str = "", what: str = "all") -> tuple[Row, ...]:
    """Return the rows of ``model`` whose family or name contains ``only``.

    Args:
        model: the model.
        only: a word.
        what: ``weights`` (ours and llama.cpp's), ``states`` or ``all``.
    """
    rows = {"weights": (*LLAMA_ROWS, *WEIGHT_ROWS), "states": KV_ROWS}.get(what, (*LLAMA_ROWS, *WEIGHT_ROWS, *KV_ROWS))
    return tuple(r for r in rows if model in r.models and only in f"{r.family} {r.name}")
