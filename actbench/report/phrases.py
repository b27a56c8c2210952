"""All words of a report in English and Japanese, and figures as people read them; no text holds a figure itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Language = Literal["en", "ja"]
MEBIBYTE = 2**20
NOTHING = "–"


@dataclass(frozen=True)
class Sentence:
    """A text by its key in `TEXTS` and what stands in its gaps: figures, names, or further sentences."""

    key: str
    values: Mapping[str, str | Sentence] = field(default_factory=dict)


def say(sentence: Sentence, language: Language, escape: Callable[[str], str] = str) -> str:
    """The sentence in `language`; `escape` is applied to what stands in the gaps."""
    values = {
        name: say(value, language, escape) if isinstance(value, Sentence) else escape(value)
        for name, value in sentence.values.items()
    }
    return word(sentence.key, language).format(**values)


def word(key: str, language: Language) -> str:
    """The text of `key`, its gaps open."""
    english, japanese = TEXTS[key]
    return english if language == "en" else japanese


def escape_markdown(text: str) -> str:
    """`text` so that Markdown shows it as it is, in one line and as a table's cell."""
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~!$])", r"\\\1", escaped)


def mebibytes_text(value_bytes: float | None) -> str:
    """Bytes as MiB, without the unit: one decimal, or two digits of what is less than one."""
    if value_bytes is None:
        return NOTHING
    value = value_bytes / MEBIBYTE
    return f"{value:.2g}" if 0 < value < 1 else f"{value:,.1f}"


def percent_text(ratio: float | None) -> str:
    """A ratio in percent, three digits or all before the point."""
    if ratio is None:
        return NOTHING
    return f"{100 * ratio:.3g}%" if ratio < 9.995 else f"{100 * ratio:,.0f}%"


def times_text(ratio: float | None) -> str:
    """A ratio as a factor."""
    return NOTHING if ratio is None else f"{ratio:.2f}x"


def points_text(difference: float | None, signed: bool = True) -> str:
    """A difference of scores in percentage points."""
    if difference is None:
        return NOTHING
    return (f"{100 * difference:+.2f}" if signed else f"{100 * difference:.2f}").replace("-", "−")


def score_text(mean: float | None, std: float | None = None) -> str:
    """Mean and spread over seeds of a score, in percent, without the sign."""
    if mean is None:
        return NOTHING
    return f"{100 * mean:.2f}" if std is None else f"{100 * mean:.2f} ± {100 * std:.2f}"


def model_text(model: str, recipe: Mapping[str, Any]) -> str:
    """The model's name and, unless it is trained on full batches, its sampler's: `sage (GraphSAINT)`."""
    sampler = recipe.get("sampler", "full")
    names = {"saint": "GraphSAINT", "cluster": "Cluster-GCN"}
    return model if sampler == "full" else f"{model} ({names.get(str(sampler), sampler)})"


def noise_text(mean: float | None, error: float | None = None) -> str:
    """Gradient noise, with its standard error where that is known."""
    if mean is None:
        return NOTHING
    known = f" ± {error:.1g}" if error else ""
    return f"{mean:.3g}{known}".replace("-", "−")


def rate_text(per_second: float | None) -> str:
    """Epochs per second."""
    return NOTHING if per_second is None else f"{per_second:.2f}"


# English, Japanese.
TEXTS: Final[dict[str, tuple[str, str]]] = {
    # Headings.
    "title": ("What it costs to forget part of an activation", "活性化マップ圧縮の効果とコスト"),
    "section.summary": ("In short", "結論"),
    "section.saved": ("What is saved on this hardware", "この環境で減るメモリ"),
    "section.costs": ("What it costs in accuracy and time", "精度と学習時間への影響"),
    "section.unknown": ("What remains unknown", "まだ確認できていないこと"),
    "section.rollout": ("Roll-out in three steps", "導入の三段階"),
    "section.meeting": ("Phrases for the meeting", "会議での説明例"),
    "section.cautions": ("Read this first", "読む前の注意"),
    "section.tables": ("Figures", "測定結果"),
    "section.charts": ("Charts", "グラフ"),
    "section.settings": ("Settings", "学習条件"),
    "section.environment": ("Environment", "測定環境"),
    "section.reproduce": ("How to reproduce each row", "各行の再現方法"),
    "section.sources": ("Which record a figure comes from", "数値の出所（記録ファイルと行）"),
    "section.notes": ("How to read the figures", "数値の読み方"),
    "step.prototype": ("Prototype", "試作"),
    "step.toolchain": ("Tool chain", "ツールチェーンへの組み込み"),
    "step.rules": ("Operating rules", "運用ルール"),
    "nothing": ("Nothing was measured that would answer this.", "これに答えられる測定値はありません。"),
    # Names of things.
    "mark.caution": ("! {text}", "※{text}"),
    "epochs.one": ("{epochs} epoch", "{epochs}エポック"),
    "epochs.many": ("{epochs} epochs", "{epochs}エポック"),
    "schemes.all": ("all schemes", "すべての方式"),
    "real": ("{dataset}", "{dataset}"),
    "generated": ("{dataset} (generated graph)", "{dataset}（生成グラフ）"),
    "subject": (
        "{dataset} · {model} {layers} x {hidden} · {epochs}{distinction} · {device}",
        "{dataset}・{model} {layers}層×{hidden}・{epochs}{distinction}・{device}",
    ),
    "distinction": (" · {text}", "・{text}"),
    "of": ("{subject}: {text}", "{subject}：{text}"),
    "peak.allocated": ("allocated by tensors", "テンソルの割り当て"),
    "peak.reserved": ("reserved by the allocator", "アロケータの確保"),
    "peak.nvml": ("whole process, NVML", "プロセス全体、NVML"),
    "peak.resident": ("resident memory of the process", "プロセスの常駐メモリ"),
    "kind.layer": ("inputs of recomputed layers", "再計算する層の入力"),
    "kind.linear": ("linear inputs", "線形層の入力"),
    "kind.batch_norm": ("batch-norm inputs", "バッチ正規化の入力"),
    "kind.relu": ("ReLU", "ReLU"),
    "kind.dropout": ("dropout", "ドロップアウト"),
    "kind.attention": ("attention", "アテンション"),
    "kind.metadata": ("blocks' minimum and scale", "ブロックの最小値とスケール"),
    "kind.other": ("other", "その他"),
    # Columns.
    "column.scheme": ("scheme", "方式"),
    "column.score": ("test {metric} %", "テスト{metric} %"),
    "column.difference": (
        "points from {reference} [{confidence}% interval]",
        "{reference}との差 pt［{confidence}%区間］",
    ),
    "column.activation": ("activation MiB", "活性化マップ MiB"),
    "column.ratio": ("of {reference}", "対{reference}"),
    "column.host": ("in host memory MiB", "ホストメモリ上 MiB"),
    "column.allocated": ("peak allocated MiB", "ピーク（割り当て）MiB"),
    "column.reserved": ("peak reserved MiB", "ピーク（確保）MiB"),
    "column.nvml": ("peak NVML MiB", "ピーク（NVML）MiB"),
    "column.resident": ("peak resident MiB", "ピーク（常駐）MiB"),
    "column.speed": ("epochs/s", "エポック/秒"),
    "column.spread": ("epochs/s, percentiles {low} to {high}", "エポック/秒（{low}〜{high}%点）"),
    "column.noise": ("gradient noise", "勾配ノイズ"),
    "column.paper_activation": ("paper (ogbn-arxiv): activation MiB", "論文（ogbn-arxiv）：活性化マップ MiB"),
    "column.paper_score": ("paper (ogbn-arxiv): accuracy %", "論文（ogbn-arxiv）：精度 %"),
    "column.paper_speed": ("paper (ogbn-arxiv): epochs/s", "論文（ogbn-arxiv）：エポック/秒"),
    "column.runs": ("runs", "実行"),
    "column.sources": ("records", "記録"),
    "column.seed": ("seed", "シード"),
    "column.status": ("status", "状態"),
    "column.kind": ("kept of", "保持の内訳"),
    "metric.accuracy": ("accuracy", "精度"),
    "metric.micro-F1": ("micro-F1", "micro-F1"),
    "metric.ROC-AUC": ("ROC-AUC", "ROC-AUC"),
    "metric.score": ("score", "スコア"),
    # Charts.
    "chart.pareto": ("Activation memory against score", "活性化マップのメモリとスコア"),
    "chart.pareto.note": (
        "Up and to the left is better; the steps pass through the schemes that no other beats in both. Bars: one "
        "standard "
        "deviation over seeds.",
        "左上ほど良い。点線の階段は、両方で上回る方式がほかにないもの（パレートフロント）を通る。縦棒はシード間の"
        "標準偏差。",
    ),
    "chart.front": ("Pareto front", "パレートフロント"),
    "chart.bytes": ("Where the bytes are", "保持するバイトの内訳"),
    "chart.bytes.note": (
        "What is kept for backward, by kind. Above all schemes on one scale, below the small ones enlarged.",
        "逆伝播のために保持する量の内訳。上は全方式を同じ目盛で、下は小さい方式を拡大して示す。",
    ),
    "chart.bytes.note.plain": ("What is kept for backward, by kind.", "逆伝播のために保持する量の内訳。"),
    "chart.all": ("all on one scale", "同じ目盛"),
    "chart.enlarged": ("enlarged", "拡大"),
    "chart.curves": ("Learning curves", "学習曲線"),
    "chart.curves.note": (
        "Validation score by epoch: mean over seeds, and one standard deviation around it.",
        "エポックごとの検証スコア。線はシード平均、帯は標準偏差。",
    ),
    "chart.times": ("Time of an epoch", "1エポックの時間"),
    "chart.times.note": (
        "Dots: epochs after warm-up. Box: the middle half, with the median; whiskers: slowest and fastest tenth.",
        "点はウォームアップ後のエポック。箱は中央の半分と中央値、ひげは上位・下位1割の境。",
    ),
    "axis.activation": ("activation memory, MiB (logarithmic)", "活性化マップのメモリ MiB（対数目盛）"),
    "axis.score": ("test {metric} %", "テスト{metric} %"),
    "axis.valid": ("validation {metric} %", "検証{metric} %"),
    "axis.epoch": ("epoch", "エポック"),
    "axis.seconds": ("ms an epoch", "1エポックの時間 ms"),
    "axis.bytes": ("MiB", "MiB"),
    "chart.font": (
        "No Japanese font is installed here (such as fonts-noto-cjk), so the charts are labelled in English.",
        "この環境に日本語フォント（fonts-noto-cjkなど）がないため、グラフの文字は英語です。",
    ),
    # Analyses at fixed weights.
    "study.title": ("Analysis: {subject}", "分析：{subject}"),
    "study.noise": ("Gradient noise E‖ĝ − g‖² / ‖g‖²", "勾配ノイズ E‖ĝ − g‖² / ‖g‖²"),
    "study.tensors": ("Gradient noise by parameter · {schemes}", "パラメータごとの勾配ノイズ・{schemes}"),
    "study.values": ("Values in their blocks · {schemes}", "ブロック内の値の分布・{schemes}"),
    "study.variance": ("Rounding variance · {schemes}", "丸めの分散・{schemes}"),
    "study.errors": ("Error of an element by block size · {schemes}", "ブロックサイズごとの要素の誤差・{schemes}"),
    "study.column.scheme": ("scheme", "方式"),
    "study.column.activation": ("activation MiB", "活性化マップ MiB"),
    "study.column.total": ("noise", "ノイズ"),
    "study.column.projection": ("of projection", "射影の分"),
    "study.column.rounding": ("of rounding", "丸めの分"),
    "study.column.cross": ("cross term", "交差項"),
    "study.column.bias": ("bias ‖E ĝ − g‖² / ‖g‖²", "偏り ‖E ĝ − g‖² / ‖g‖²"),
    "study.column.parameter": ("parameter", "パラメータ"),
    "study.column.share": ("share of ‖g‖²", "‖g‖²の割合"),
    "study.column.own": ("noise / its own ‖g‖²", "自身の‖g‖²に対するノイズ"),
    "study.column.call": ("input of", "入力"),
    "study.column.stored": ("stored", "保持する形"),
    "study.column.block": ("block", "ブロック"),
    "study.column.from_uniform": ("divergence from uniform", "一様分布とのJSダイバージェンス"),
    "study.column.from_normal": ("from clipped normal", "切断正規分布と"),
    "study.column.nearer": ("nearer to", "近い分布"),
    "study.column.levels": ("levels", "レベル"),
    "study.column.if_normal": ("if clipped normal", "切断正規なら"),
    "study.column.if_uniform": ("if uniform", "一様なら"),
    "study.column.expected": ("of these values", "この値での期待"),
    "study.column.measured": ("measured", "測定"),
    "study.column.against": ("against uniform levels", "一様レベルとの差"),
    "study.column.length": ("block {length}", "ブロック{length}"),
    "study.uniform": ("uniform", "一様"),
    "study.clipped-normal": ("clipped normal", "切断正規"),
    "study.measured": ("the values", "実際の値"),
    "study.bytes": ("all inputs, MiB", "全入力 MiB"),
    "study.projected": ("{shape} projected", "{shape}（射影後）"),
    "study.exact": ("its gradient vanishes", "勾配がゼロ"),
    "study.note.weights": (
        "Weights after {epochs} of FP32 training (seed {seed}); one dropout mask for all; mean ± standard error over "
        "{draws} draws of a scheme's noise{source}.",
        "FP32で{epochs}学習した重み（シード{seed}）で固定し、ドロップアウトのマスクも固定。圧縮の乱数を{draws}回引いた"
        "平均±標準誤差{source}。",
    ),
    "study.note.source": (" ({file})", "（{file}）"),
    "study.note.no_source": ("", ""),
    "study.note.split": (
        "Noise is the sum of projection alone, of rounding given the projection, and of a cross term whose expectation "
        "is zero where rounding is unbiased. An estimated bias may fall below zero by its standard error.",
        "ノイズは、射影だけの分、射影を固定した丸めの分、交差項の和。丸めに偏りがなければ交差項の期待値はゼロ。"
        "偏りの推定値は標準誤差の範囲で負にもなる。",
    ),
    "study.note.derived": (
        "{schemes}: batch norm's backward takes its normalised input, where the output is not positive, for that "
        "channel's mean there. What that does to the gradient, whatever the draw, is in the bias column; ReLU, dropout "
        "and the weights of linear layers add none. Of these schemes' codes there are no tables of values in blocks.",
        "{schemes}：バッチ正規化の逆伝播では、出力が正でない要素の正規化入力を、そのチャネルでの平均で代用する。"
        "乱数によらず勾配がずれる分が「偏り」の列。ReLU、ドロップアウト、線形層の重みの勾配には偏りを加えない。"
        "これらの方式の符号については、ブロック内の値の表はない。",
    ),
    "study.note.tensors": (
        "All in units of the whole gradient's ‖g‖², so that parameters add up to the scheme's noise; in the last "
        "column in units of the parameter's own.",
        "最後の列以外は勾配全体の‖g‖²を単位とし、足すと方式のノイズになる。最後の列はそのパラメータ自身の‖g‖²を"
        "単位とする。",
    ),
    "study.note.values": (
        "Values normalised by their block's minimum and scale; Jensen-Shannon divergence in bits over {bins} bins.",
        "値をブロックの最小値とスケールで正規化し、{bins}区間のヒストグラムで比べたJSダイバージェンス（ビット）。",
    ),
    "study.note.counted": (
        "Of {calls} evenly spaced runs of rows were looked at.",
        "{calls}は、等間隔に選んだ行のまとまりだけを調べた。",
    ),
    "study.note.variance": (
        "Mean variance of stochastic rounding, in units of the squared scale: expected if values were distributed as "
        "named, expected of the values as they are, and measured over {draws} roundings of each with the standard "
        "error that follows from the values.",
        "確率的丸めの分散の平均（スケールの二乗を単位とする）。分布を仮定した期待値、実際の値での期待値、各値を{draws}回"
        "丸めた測定値と、値から導いた標準誤差。",
    ),
    "study.note.errors": (
        "Root mean square of the expected rounding error of a stored value, in percent of the values' own root mean "
        "square; longer blocks take fewer bytes and have a longer range. MiB: codes, minima and scales.",
        "保持する値の丸め誤差の二乗平均平方根の期待値（値自身の二乗平均平方根に対する%）。ブロックが長いほど"
        "バイト数は減り、値の幅は広がる。MiBは符号と最小値とスケール。",
    ),
    "study.drowned": (
        "Warning: blocks mix columns of different scale or mean in {calls}: there the rounding of one column has so "
        "many times the column's own variance, and batch norm's gradient is noise with a wrong mean. Schemes other "
        "than the papers' keep each column in units of its own.",
        "警告：{calls}では、スケールや平均の異なる列が同じブロックに入っています。丸め誤差の分散が列自身の分散の上記の倍数に"
        "達する列があり、バッチ正規化の勾配はノイズに埋もれ、その平均も偏ります。論文以外のスキームは、列ごとの単位で保持する"
        "ため影響を受けません。",
    ),
    "study.worse": (
        "Clipped-normal levels (VM) are worse than uniform ones here for: {calls}.",
        "次の入力では、切断正規のレベル（VM）は一様なレベルより分散が大きい：{calls}。",
    ),
    "study.better": (
        "Clipped-normal levels (VM) are worse than uniform ones for no input here; where they differ, the expected "
        "variance changes by {low} to {high}.",
        "ここでは、切断正規のレベル（VM）が一様なレベルより悪い入力はない。異なる入力では分散の期待値が{low}〜{high}"
        "変わる。",
    ),
    "study.same": (
        "Clipped-normal levels (VM) are the uniform ones here.",
        "ここでは切断正規のレベル（VM）は一様なレベルと同じ。",
    ),
    "study.generated": (
        "{dataset} is a generated graph: its activations are not those of the real data.",
        "{dataset}は生成グラフで、活性化マップの値は実データのものではない。",
    ),
    "study.chart.values.note": (
        "Bars: share of the values in each bin from a block's minimum (left) to its maximum (right), on a logarithmic "
        "scale. Lines: uniform, and the paper's clipped normal with what is clipped in the outer bins.",
        "縦軸は対数目盛。棒はブロックの最小値（左端）から最大値（右端）までの各区間にある値の割合。線は一様分布と論文の切断正規分布"
        "（両端に切断分を含む）。",
    ),
    "study.chart.noise.note": (
        "Noise at fixed weights on a logarithmic scale, of projection and of rounding; bars: one standard error.",
        "固定した重みでのノイズ（対数目盛）。射影の分と丸めの分。横棒は標準誤差。",
    ),
    "study.chart.errors.note": (
        "Expected error of a stored value in percent of the values' root mean square, by block size.",
        "ブロックサイズごとの、保持する値の誤差の期待値（値の二乗平均平方根に対する%）。",
    ),
    "study.axis.position": ("place between the block's minimum and maximum", "ブロックの最小値と最大値の間の位置"),
    "study.axis.share": ("share of values, %", "値の割合 %"),
    "study.axis.length": ("block size, elements", "ブロックサイズ（要素数）"),
    "study.axis.error": ("error, % of rms", "誤差（rms比 %）"),
    "note.noise": (
        "Gradient noise: E‖ĝ − g‖² / ‖g‖² at weights after {epochs} of FP32, {draws} draws, from {file}.",
        "勾配ノイズ：FP32で{epochs}学習した重みでの E‖ĝ − g‖² / ‖g‖²、{draws}回、{file}による。",
    ),
    # Notes.
    "note.activation": (
        "Activations: bytes kept for backward after the model's forward pass, without parameters and graph data.",
        "活性化マップ：順伝播の後に逆伝播のため保持しているバイト数。パラメータとグラフデータは含まない。",
    ),
    "note.sampled": (
        "Trained on samples: activations are those of the step that kept most in the first epoch; an epoch is all its "
        "steps, samples made on the way included; scores, and whole peaks with them, are of full batches.",
        "サンプルでの学習：活性化マップは最初のエポックで保持量が最大だったステップの値。1エポックはサンプルの作成を含む"
        "全ステップ。スコアは全グラフで求め、ピークメモリもそれを含む。",
    ),
    "note.peak.cpu": (
        "Whole peak: host memory of the process after warm-up, interpreter and libraries included; those that compile "
        "the quantizer are in the compressing schemes' alone.",
        "学習時のピークメモリ：ウォームアップ後のプロセス全体の主記憶。インタプリタとライブラリを含む。このうち量子化器を"
        "コンパイルするライブラリは圧縮方式だけに含まれる。",
    ),
    "note.peak.cuda": (
        "Whole peak: device memory, after warm-up, as tensors took it (allocated), as the allocator held it "
        "(reserved) "
        "and as NVML saw the process.",
        "学習時のピークメモリ：ウォームアップ後のデバイスメモリ。テンソルへの割り当て、アロケータの確保、"
        "NVMLから見たプロセスの使用量。",
    ),
    "note.score": (
        "Score: on test nodes at the best validation epoch; mean ± standard deviation over seeds. Differences are "
        "paired "
        "by seed, with Student's interval.",
        "スコア：検証スコアが最良のエポックでのテスト値。シード間の平均±標準偏差。差は同じシードどうしで取り、区間は"
        "スチューデントのtによる。",
    ),
    "note.speed": (
        "Epochs/s: one over the median of all epochs after warm-up, and the rates that a tenth of them fall short "
        "of and "
        "a tenth exceed.",
        "エポック/秒：ウォームアップ後の全エポックの時間の中央値の逆数。範囲は遅い側と速い側の1割を除く境。",
    ),
    "note.ours": (
        "Schemes: exact is EXACT's, blockwise and blockwise-vm are i-EXACT's; {schemes}: actbench's own, in neither "
        "paper.",
        "方式の出所：exactはEXACT、blockwiseとblockwise-vmはi-EXACT。{schemes}はactbench独自で、どちらの論文にもない。",
    ),
    "note.paper": (
        "Paper: i-EXACT (and EXACT), on the real ogbn-arxiv and the authors' machine, loss included. raw: a result "
        "file "
        "of "
        "theirs; calc: from their code's arithmetic; recall: the printed table as remembered, not re-read.",
        "論文：i-EXACT（とEXACT）の値。実データogbn-arxivを著者の環境で測り、損失の分を含む。raw：著者の"
        "結果ファイル、"
        "calc：著者のコードからの計算、recall：記憶による表の値で未照合。",
    ),
    "note.paper.cpu": (
        "The authors' FP32 kept a dropout's mask as bytes; a CPU's keeps it as floats, four times as large.",
        "著者のFP32はドロップアウトのマスクを1要素1バイトで保持したが、CPUでは浮動小数点数で、その四倍を保持する。",
    ),
    "note.paper.twin": (
        "This graph is generated in the shape of ogbn-arxiv: its bytes can be set beside the paper's, its scores "
        "cannot.",
        "このグラフはogbn-arxivと同じ大きさに生成したもの。バイト数は論文と比べられるが、精度は比べられない。",
    ),
    "note.paper.scale": (
        "This graph is generated and has {nodes} nodes, ogbn-arxiv {whole}: ratios can be set beside the paper's, "
        "bytes, scores and epochs/s cannot.",
        "このグラフは生成したもので{nodes}ノード、ogbn-arxivは{whole}ノード。論文と比べられるのは比だけで、バイト数、"
        "精度、エポック/秒は比べられない。",
    ),
    "note.paper.epochs": (
        "The paper trained for {usual} epochs, these runs for {epochs}.",
        "論文の学習は{usual}エポック、この測定は{epochs}。",
    ),
    # The papers' claims.
    "claims": ("Claims of the papers' abstracts · {subject}", "論文要旨の主張・{subject}"),
    "column.paper": ("paper", "論文"),
    "column.claim": ("claim", "主張"),
    "column.claimed": ("claimed", "論文の値"),
    "column.measured": ("measured", "測定値"),
    "claim.activation": (
        "activation bytes saved by {scheme}, of {against}'s",
        "{scheme}の活性化マップの削減率（対{against}）",
    ),
    "claim.time": ("epoch time of {scheme}, change from {against}'s", "{scheme}のエポック時間の増減（対{against}）"),
    "claim.score": ("score of {scheme}, points from {against}'s", "{scheme}のスコアの差 pt（対{against}）"),
    "claimed.similar": ("similar", "同程度"),
    "claimed.least": ("over {low}", "{low}超"),
    "claimed.most": ("up to {high}", "最大{high}"),
    "claimed.about": ("about {value}", "約{value}"),
    "claimed.range": ("{low} to {high}", "{low}〜{high}"),
    "note.claims": (
        "abs: as the abstract says it, of several graphs and a GPU. A score's interval is Student's over paired seeds.",
        "abs：要旨の記述（複数のグラフ、GPUでの値）。スコアの区間は同じシードどうしの差のスチューデントのt区間。",
    ),
    # Warnings with advice.
    "caution.machines": (
        "Different machines share this table: {machines}. Ratios and differences are to the reference on the same "
        "machine; compare no bytes or times across the letters.",
        "異なる環境の記録が1つの表に入っています：{machines}。比と差は同じ環境の基準に対するものです。"
        "文字の違う行どうしで時間やメモリを比べないでください。",
    ),
    "caution.host": (
        "{schemes}: {mebibytes} MiB of activations lie in host memory beside those in the column, and it is not in the "
        "chart of memory against score. Look at the time and at the host's memory.",
        "{schemes}：活性化マップの欄のほかに{mebibytes} MiBがホストメモリにあり、メモリとスコアのグラフには"
        "載りません。時間とホストのメモリも確認してください。",
    ),
    "caution.no_reference": (
        "{schemes}: no run of {reference} on the same machine to compare with. Measure it with --scheme {reference}.",
        "{schemes}：同じ環境で測った基準{reference}がなく、比較できません。--scheme {reference} で測定してください。",
    ),
    "caution.one_seed": (
        "{schemes}: one seed only, which is not a result. Add seeds (--seeds) for a mean with its spread.",
        "{schemes}：シードが1つだけで、結果とは言えません。--seeds でシードを増やし、平均とばらつきを出してください。",
    ),
    "caution.unpaired": (
        "{schemes}: fewer than two seeds in common with {reference}, so no interval. Run the same seeds.",
        "{schemes}：{reference}と共通のシードが二つに満たず、区間を出せません。同じシードで測定してください。",
    ),
    "caution.seeds_differ": (
        "{schemes}: not the same seeds finished as under {reference}, so the means are over different seeds; the "
        "difference is over the common ones. Run the same seeds.",
        "{schemes}：完了したシードが{reference}と異なり、平均は別のシードの組によります。差は共通のシードだけで"
        "取っています。同じシードで測定してください。",
    ),
    "caution.overlap": (
        "{schemes}: the difference in score to {reference} cannot be told from noise, since its interval holds zero. "
        "More seeds narrow it.",
        "{schemes}：{reference}とのスコアの差は区間がゼロを含み、ばらつきと区別できません。シードを増やすと区間が"
        "狭まります。",
    ),
    "caution.unfinished": (
        "{schemes}: {runs} run(s) ended as {status}; means hold finished runs only. Look at the record's error; the "
        "same command measures what failed again, and what ran out of memory only with --fresh.",
        "{schemes}：{runs}件の実行が{status}で終わりました。平均は完了した実行だけによります。"
        "記録のerrorを確認してください。同じコマンドで失敗した実行を測り直します（メモリ不足は--freshを付けたときだけ）。",
    ),
    "caution.warm_up": (
        "{schemes}: in {slow} of {runs} runs the first timed epochs are still much slower than the rest, so warm-up "
        "is "
        "in the figures. Train for more epochs, or trust the median only.",
        "{schemes}：{runs}件中{slow}件で、計時の最初のエポックがほかより明らかに遅く、ウォームアップが数値に"
        "残っています。"
        "エポックを増やすか、中央値だけを使ってください。",
    ),
    "caution.few_epochs": (
        "{schemes}: only {epochs} timed epoch(s), which say little of speed. Train for more (--epochs).",
        "{schemes}：計時したエポックが{epochs}回だけで、速度の根拠になりません。--epochs を増やしてください。",
    ),
    "caution.scatter": (
        "{schemes}: epoch times scatter {factor}-fold between fast and slow tenth, as when another process runs. "
        "Measure "
        "again on an idle machine.",
        "{schemes}：エポック時間の速い側と遅い側の1割の境に{factor}倍の開きがあり、ほかのプロセスが"
        "動いていた可能性があります。"
        "空いている環境で測り直してください。",
    ),
    "caution.neighbours": (
        "{schemes}: another process was on the GPU. Measure again on a GPU of your own.",
        "{schemes}：測定中にほかのプロセスがGPUを使っていました。専有したGPUで測り直してください。",
    ),
    "caution.commits": (
        "Records are of different commits of actbench: {commits}. Measure again with one (--fresh).",
        "actbenchの異なるコミットの記録が混ざっています：{commits}。--fresh で測り直してください。",
    ),
    "caution.superseded": (
        "{records} record(s) of runs that were measured again are left out: {sources}.",
        "測り直された古い記録{records}件は除きました：{sources}。",
    ),
    # The page for a decision.
    "summary.smallest": (
        "On {dataset}, {scheme} keeps the least for backward: {value} MiB of activations against {base} MiB under "
        "{reference} ({ratio} of it). The peak ({kind}) is {peak} MiB against {peak_base} MiB ({peak_ratio}).",
        "{dataset}では、{scheme}の保持量が最も小さく、活性化マップは{reference}の{base} MiBに対して{value} MiB（"
        "{ratio}）です。"
        "学習時のピークメモリ（{kind}）は{peak_base} MiBに対して{peak} MiB（{peak_ratio}）です。",
    ),
    "summary.smallest.activation": (
        "On {dataset}, {scheme} keeps the least for backward: {value} MiB of activations against {base} MiB under "
        "{reference} ({ratio} of it). The whole peak was not measured.",
        "{dataset}では、{scheme}の保持量が最も小さく、活性化マップは{reference}の{base} MiBに対して{value} MiB（"
        "{ratio}）です。"
        "学習時のピークメモリ全体は測定していません。",
    ),
    "summary.finished": (
        "{scheme} finished {runs} run(s) of {dataset} on {device}, where {reference} ran out of memory.",
        "{device}での{dataset}の学習は、{reference}ではメモリ不足で終わり、{scheme}では{runs}件完了しました。",
    ),
    "summary.score": (
        "Of the schemes that keep less {scheme} has the highest mean score: {value}%, {difference} points from "
        "{reference} [{low}, {high}; {confidence}% interval, {pairs} seeds].",
        "保持量を減らす方式のうちスコアの平均が最も高いのは{scheme}で{value}%、{reference}との差は{difference}ポイント"
        "です（{confidence}%信頼区間 {low}〜{high}、{pairs}シード）。",
    ),
    "summary.close": (
        "These seeds cannot tell the score of {scheme} from that of {schemes}.",
        "このシード数では、{scheme}のスコアは{schemes}のスコアと区別できません。",
    ),
    "summary.time": (
        "Of the schemes that keep less {scheme} is the fastest: an epoch takes {factor} times {reference}'s.",
        "保持量を減らす方式のうち最も速いのは{scheme}で、1エポックの時間は{reference}の{factor}倍です。",
    ),
    "scheme.about": (
        "{scheme}: {bits}-bit quantization with stochastic rounding, {block}, {levels}{projection}.",
        "{scheme}：{block}量子化（{bits}ビット、確率的丸め、{levels}）{projection}。",
    ),
    "scheme.derived": (
        "{scheme}, actbench's own: each activation between layers is kept once, as a {bits}-bit code that holds ReLU's "
        "mask exactly and its output stochastically rounded ({block}, {levels}); batch norm, where there is one, and "
        "the next layer read the same code. Nothing is projected.",
        "{scheme}（actbench独自の方式）：層の間の活性化マップを一度だけ保持します。ReLUの正確なマスクと、確率的に"
        "丸めた出力を{bits}ビットの符号1つで兼ね（{block}、{levels}）、バッチ正規化（ある場合）と次の層の逆伝播も"
        "同じ符号を読みます。射影はしません。",
    ),
    "scheme.bf16": (
        "{scheme}: forward and loss run under autocast in bfloat16, so activations are kept in half the bytes wherever "
        "torch computes in bfloat16; parameters, optimizer, sparse products and evaluation stay FP32.",
        "{scheme}：順伝播と損失をautocastによりbfloat16で計算し、その部分の活性化マップを半分のバイト数で保持します。"
        "パラメータ、オプティマイザ、疎行列積、評価はFP32のままです。",
    ),
    "scheme.checkpoint": (
        "{scheme}: only the input of each layer is kept, and the layer is computed again in backward; the gradient is "
        "FP32's.",
        "{scheme}：各層の入力だけを保持し、逆伝播のときに層を計算し直します。勾配はFP32と同じです。",
    ),
    "scheme.offload": (
        "{scheme}: what FP32 keeps is copied to host memory during forward and back in backward; the gradient is "
        "FP32's.",
        "{scheme}：FP32が保持するものを順伝播中にホストメモリへ移し、逆伝播で戻します。勾配はFP32と同じです。",
    ),
    "scheme.calls": (
        "In {scheme} single calls of a forward pass are kept otherwise, each counted among its like: {calls}.",
        "{scheme}では、順伝播の特定の呼び出し（同じ演算のうち何回目か）だけ設定を変えています：{calls}。",
    ),
    "block.row": ("a block for every row", "行ごとの"),
    "block.rows": ("block-wise with up to {rows} rows to a block", "最大{rows}行を1ブロックとするブロック単位"),
    "block.elements": ("block-wise with {rows} elements to a block", "{rows}要素を1ブロックとするブロック単位"),
    "levels.uniform": ("uniform levels", "等間隔のレベル"),
    "levels.clipped-normal": (
        "variance-minimised levels",
        "分散最小化によるレベル",
    ),
    "levels.other": ("{levels} levels", "{levels}レベル"),
    "projection.some": (
        "; linear inputs are first projected at random to 1/{ratio} of their width",
        "。線形層の入力は、先にランダム射影で幅を1/{ratio}にします",
    ),
    "projection.none": ("", ""),
    "saved.further": (
        "Of {total} schemes, those are named here that no other equals or beats in both score and bytes; all are in "
        "the table.",
        "ここでは{total}方式のうち、スコアとバイト数の両方で上回るものがほかにない方式を挙げます。全方式は表に"
        "あります。",
    ),
    "saved.both": (
        "{scheme}: activations kept for backward go from {base} to {value} MiB, {ratio} of {reference}'s; the whole "
        "peak ({kind}) goes from {peak_base} to {peak} MiB, {peak_ratio}.",
        "{scheme}：逆伝播のために保持する活性化マップは{base} MiBから{value} MiB（{reference}の{ratio}）、学習時の"
        "ピークメモリ全体（{kind}）は{peak_base} MiBから{peak} MiB（{peak_ratio}）になります。",
    ),
    "saved.activation": (
        "{scheme}: activations kept for backward go from {base} to {value} MiB, {ratio} of {reference}'s; the whole "
        "peak was not measured.",
        "{scheme}：逆伝播のために保持する活性化マップは{base} MiBから{value} MiB（{reference}の{ratio}）になります。"
        "学習時のピークメモリ全体は測定していません。",
    ),
    "saved.alone": (
        "{scheme}: {value} MiB of activations are kept for backward; {reference} has no figure to set beside it, and "
        "the whole peak was not measured.",
        "{scheme}：逆伝播のために保持する活性化マップは{value} MiBです。比べるべき{reference}の値はなく、学習時の"
        "ピークメモリ全体は測定していません。",
    ),
    "saved.alone.both": (
        "{scheme}: {value} MiB of activations are kept for backward, and the whole peak ({kind}) is {peak} MiB; "
        "{reference} has no figure to set beside them.",
        "{scheme}：逆伝播のために保持する活性化マップは{value} MiB、学習時のピークメモリ全体（{kind}）は{peak} MiB"
        "です。比べるべき{reference}の値はありません。",
    ),
    "saved.host": (
        "{scheme}: {value} MiB of activations lie in host memory instead, and cross to the device and back in every "
        "step.",
        "{scheme}：代わりに{value} MiBの活性化マップがホストメモリにあり、ステップごとにデバイスとの間を往復します。",
    ),
    "saved.share": (
        "Under {reference} the activations amount to {share} of the whole peak ({kind}), and the whole peak is what "
        "must fit into the machine.",
        "{reference}では、活性化マップは学習時のピークメモリ全体（{kind}）の{share}です。実際に収まる必要があるのは"
        "ピークメモリ全体です。",
    ),
    "saved.kind": (
        "{scheme}: the largest part of what is still kept is {kind}, {share} of {value} MiB.",
        "{scheme}：残る{value} MiBの保持量のうち最も大きいのは{kind}で、{share}です。",
    ),
    "costs.distinct": (
        "{scheme}: {metric} {value}% against {base}%, {difference} points [{low}, {high}; {confidence}% "
        "interval, {pairs} "
        "paired seeds].",
        "{scheme}：{metric}は{base}%に対して{value}%、差は{difference}ポイント（{confidence}%信頼区間 {low}〜{high}、"
        "同じシード{pairs}組）です。",
    ),
    "costs.overlap": (
        "{scheme}: {metric} {value}% against {base}%, {difference} points [{low}, {high}; {confidence}% "
        "interval, {pairs} "
        "paired seeds]; that cannot be told from no difference.",
        "{scheme}：{metric}は{base}%に対して{value}%、差は{difference}ポイント（{confidence}%信頼区間 {low}〜{high}、"
        "同じシード{pairs}組）で、差がないこととは区別できません。",
    ),
    "costs.equal": (
        "{scheme}: {metric} {value}%, the same as {reference}'s with each of {pairs} seeds.",
        "{scheme}：{metric}は{value}%で、{pairs}シードのいずれでも{reference}と同じ値です。",
    ),
    "costs.single": (
        "{scheme}: {metric} {value}% against {base}% in the runs there are, too few seeds to call it a result.",
        "{scheme}：{metric}は{base}%に対して{value}%ですが、シードが足りず結果とは言えません。",
    ),
    "costs.alone": (
        "{scheme}: {metric} {value}% in the mean of {seeds} seeds; what that costs is unknown, since {reference} has "
        "no score.",
        "{scheme}：{metric}は{seeds}シードの平均で{value}%です。{reference}のスコアがないため、影響は分かりません。",
    ),
    "costs.alone.one": (
        "{scheme}: {metric} {value}% with one seed, which is not a result; {reference} has no score.",
        "{scheme}：{metric}は{value}%ですが、シードが1つだけで結果とは言えません。{reference}のスコアはありません。",
    ),
    "costs.slower": (
        "{scheme}: an epoch takes {factor} times {reference}'s{range}, {value} ms against {base} ms in the median.",
        "{scheme}：1エポックの時間は{reference}の{factor}倍{range}、中央値で{base} msに対して{value} msです。",
    ),
    "costs.noise": (
        "{scheme}: gradient noise E‖ĝ − g‖² / ‖g‖² is {value} at one point of training, no measure of accuracy.",
        "{scheme}：勾配ノイズ E‖ĝ − g‖² / ‖g‖² は、学習中の一時点で{value}です。精度そのものの指標ではありません。",
    ),
    "costs.generated": (
        "{dataset} is generated: these scores compare the schemes with each other and say nothing of the real data.",
        "{dataset}は生成データです。スコアは方式どうしの比較であり、実データの精度を示すものではありません。",
    ),
    "unknown.generated": (
        "How the score changes on real data: {dataset} was generated.",
        "実データでのスコアの変化。{dataset}は生成データです。",
    ),
    "unknown.seeds": (
        "How far scores vary between seeds: there is one seed of {schemes}.",
        "{schemes}のシード間のばらつき。シードは1つだけです。",
    ),
    "unknown.overlap": (
        "Whether there is any difference in score from {reference}: the interval of {schemes} holds zero.",
        "{schemes}と{reference}のスコアに差があるかどうか。区間がゼロを含みます。",
    ),
    "unknown.machine": (
        "Memory and time on anything but what was measured here, {device}.",
        "ここで測った{device}以外の環境でのメモリと時間。",
    ),
    "unknown.epochs": (
        "What happens beyond {epochs}, or under other settings than these.",
        "{epochs}を超えて学習した場合や、ほかの学習条件での結果。",
    ),
    "unknown.unfinished": (
        "What {scheme} would give in the {runs} run(s) that ended as {status}.",
        "{status}で終わった{scheme}の{runs}件が、完了していれば示した値。",
    ),
    "unknown.peak": (
        "The peak as {kind}: it could not be measured ({reason}).",
        "ピークメモリ（{kind}）。測定できませんでした（{reason}）。",
    ),
    "unknown.speed": (
        "The speed of {schemes}: no more than {epochs} timed epoch(s).",
        "{schemes}の速度。計時したエポックは{epochs}回だけです。",
    ),
    "rollout.prototype": (
        "Train one model of your own under {scheme} for the same seeds as {reference}, and expect what {dataset} "
        "gave: "
        "activations at {ratio} of {reference}'s.",
        "自社のモデル1つを{scheme}と{reference}で同じシードで学習し、{dataset}と同じく活性化マップが{reference}の"
        "{ratio}になるかを確かめます。",
    ),
    "rollout.prototype.score": (
        "Agree beforehand on the loss of score that would be acceptable, and go on only if the whole interval on your "
        "own data lies above it; on {dataset} its lower end was {low} points.",
        "許容できるスコアの低下幅を先に決め、自社のデータで測った区間全体がそれより上にある場合だけ次に進みます。"
        "{dataset}での区間の下端は{low}ポイントでした。",
    ),
    "rollout.prototype.unscored": (
        "No score chose {scheme}, only its bytes: compare it with {reference} over several seeds before anything else.",
        "{scheme}はスコアではなくバイト数だけで選んでいます。まず複数のシードで{reference}と比べてください。",
    ),
    "rollout.toolchain": (
        "Keep these records as the baseline of actbench check in CI, so that {scheme} on {dataset} keeps no more "
        "than {value} bytes for backward unnoticed.",
        "この記録をCIのactbench checkの基準とし、{dataset}での{scheme}の保持量が"
        "{value}バイトから増えたら検知できるようにします。",
    ),
    "rollout.toolchain.time": (
        "Watch the time as well: an epoch at {factor} times {reference}'s is the price measured on {dataset}.",
        "時間も監視します。{dataset}で測ったエポック時間は{reference}の{factor}倍です。",
    ),
    "rollout.rules": (
        "State both figures whenever memory is quoted: activations {ratio} and whole peak ({kind}) {peak_ratio} of "
        "{reference}'s on "
        "{dataset}.",
        "メモリの数値を示すときは、{dataset}での活性化マップ（{reference}の{ratio}）とピークメモリ全体（"
        "{kind}、{peak_ratio}）を必ず並べます。",
    ),
    "rollout.rules.score": (
        "Quote a score with its interval and at least {pairs} seeds, and fall back to {reference} where the loss is "
        "too "
        "large for the task.",
        "スコアは{pairs}シード以上の区間とともに示し、用途に対して低下が大きければ{reference}に戻します。",
    ),
    "meeting.memory": (
        "“On {device}, training on {dataset}, {scheme} brings the activations from {base} to {value} MiB. The whole "
        "peak ({kind}) goes from {peak_base} to {peak} MiB.”",
        "「{device}で{dataset}を学習したところ、{scheme}で活性化マップは{base} MiBから{value} MiBになりました。"
        "ピークメモリ全体（{kind}）は{peak_base} MiBから{peak} MiBです。」",
    ),
    "meeting.memory.activation": (
        "“On {device}, training on {dataset}, {scheme} brings the activations from {base} to {value} MiB; the whole "
        "peak we have yet to measure.”",
        "「{device}で{dataset}を学習したところ、{scheme}で活性化マップは{base} MiBから{value} MiBになりました。"
        "ピークメモリ全体はこれから測ります。」",
    ),
    "meeting.finished": (
        "“On {device}, {dataset} cannot be trained under {reference}: it runs out of memory. Under {scheme} it can.”",
        "「{device}では、{reference}による{dataset}の学習はメモリ不足で終わります。{scheme}なら完了します。」",
    ),
    "meeting.loss": (
        "“Against {reference}, {metric} changes by {difference} points, between {low} and {high} with "
        "{confidence}% confidence over {pairs} seeds.”",
        "「{metric}の{reference}との差は{difference}ポイント、{pairs}シードの"
        "{confidence}%信頼区間で{low}〜{high}ポイントです。」",
    ),
    "meeting.noise": (
        "“In {metric} we see no difference that {pairs} seeds could tell from noise: {difference} points, between "
        "{low} and "
        "{high}.”",
        "「{metric}には、{pairs}シードではばらつきと区別できる差がありません（{difference}ポイント、{low}〜{high}）"
        "。」",
    ),
    "meeting.equal": (
        "“The {metric} is the same as under {reference}, seed by seed ({pairs} seeds).”",
        "「{metric}は{pairs}シードのいずれでも{reference}と同じです。」",
    ),
    "meeting.single": (
        "“Of the {metric} we cannot speak yet: the seeds are too few.”",
        "「{metric}については、シードが足りず、まだ何も言えません。」",
    ),
    "meeting.time": (
        "“An epoch takes {value} ms instead of {base} ms, {factor} times as long{range}.”",
        "「1エポックの時間は{base} msから{value} ms、{factor}倍{range}になりました。」",
    ),
    "time.range": (" (seed by seed {low} to {high})", "（シードごとには{low}〜{high}倍）"),
    "meeting.generated": (
        "“The graph is generated in the shape of a real one; the score on our data is still to be measured.”",
        "「グラフは実データの大きさに合わせて生成したもので、実データではありません。当社のデータでのスコアはこれから測ります。」",
    ),
}
