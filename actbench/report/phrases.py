"""All words of a report in English and Japanese, and figures as people read them; no text holds a figure of its "
"own."""

from __future__ import annotations

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


def mebibytes_text(value_bytes: float | None) -> str:
    """Bytes as MiB, without the unit."""
    return NOTHING if value_bytes is None else f"{value_bytes / MEBIBYTE:,.1f}"


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
        "{dataset} · {model} {layers} x {hidden} · {epochs} · {device}",
        "{dataset}・{model} {layers}層×{hidden}・{epochs}・{device}",
    ),
    "peak.allocated": ("allocated by tensors", "テンソルの割り当て"),
    "peak.reserved": ("reserved by the allocator", "アロケータの確保"),
    "peak.nvml": ("whole process, NVML", "プロセス全体、NVML"),
    "peak.resident": ("resident memory of the process", "プロセスの常駐メモリ"),
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
        "Whole peak: host memory of the process, interpreter and libraries included, after warm-up.",
        "学習時のピークメモリ：ウォームアップ後のプロセス全体の主記憶。インタプリタとライブラリを含む。",
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
    # Warnings with advice.
    "caution.machines": (
        "Different machines share this table: {machines}. Ratios and differences are to the reference on the same "
        "machine; compare no bytes or times across the letters.",
        "異なる環境の記録が1つの表に入っています：{machines}。比と差は同じ環境の基準に対するものです。"
        "文字の違う行どうしで時間やメモリを比べないでください。",
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
    "summary.score": (
        "Of the compressed schemes {scheme} scores best: {value}%, {difference} points from {reference} "
        "[{low}, {high}; {confidence}% interval, {pairs} seeds].",
        "圧縮方式のうちスコアが最も高いのは{scheme}で{value}%、{reference}との差は{difference}ポイントです"
        "（{confidence}%信頼区間 {low}〜{high}、{pairs}シード）。",
    ),
    "summary.time": (
        "The fastest compressed scheme is {scheme}: an epoch takes {factor} times {reference}'s.",
        "圧縮方式のうち最も速いのは{scheme}で、1エポックの時間は{reference}の{factor}倍です。",
    ),
    "scheme.about": (
        "{scheme}: {bits}-bit quantization with stochastic rounding, {block}, {levels}{projection}.",
        "{scheme}：{block}量子化（{bits}ビット、確率的丸め、{levels}）{projection}。",
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
        "。線形層の入力は、先にランダム射影で幅を1/{ratio}にする",
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
    "saved.share": (
        "Under {reference} the activations amount to {share} of the whole peak ({kind}), and the whole peak is what "
        "must fit into the machine.",
        "{reference}では、活性化マップは学習時のピークメモリ全体（{kind}）の{share}です。実際に収まる必要があるのは"
        "ピークメモリ全体です。",
    ),
    "saved.kind": (
        "{scheme}: the largest part of what is still kept is {kind}, {share} of {value} MiB.",
        "{scheme}：なお保持する{value} MiBのうち最も大きいのは{kind}で、{share}です。",
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
    "costs.single": (
        "{scheme}: {metric} {value}% against {base}% in the runs there are, too few seeds to call it a result.",
        "{scheme}：{metric}は{base}%に対して{value}%ですが、シードが足りず結果とは言えません。",
    ),
    "costs.slower": (
        "{scheme}: an epoch takes {factor} times {reference}'s, {value} ms against {base} ms in the median.",
        "{scheme}：1エポックの時間は{reference}の{factor}倍、中央値で{base} msに対して{value} msです。",
    ),
    "costs.noise": (
        "{scheme}: gradient noise E‖ĝ − g‖² / ‖g‖² is {value}.",
        "{scheme}：勾配ノイズ E‖ĝ − g‖² / ‖g‖² は{value}です。",
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
        "How far {schemes} varies between seeds: there is one seed.",
        "{schemes}のシード間のばらつき。シードは1つだけです。",
    ),
    "unknown.overlap": (
        "Whether {schemes} differs in score from {reference} at all: the interval holds zero.",
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
        "Go on only if the difference in score stays above {low} points, the lower end measured on {dataset}.",
        "スコアの差が、{dataset}で測った区間の下端{low}ポイントを下回らなければ次に進みます。",
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
    "meeting.single": (
        "“Of the {metric} we cannot speak yet: the seeds are too few.”",
        "「{metric}については、シードが足りず、まだ何も言えません。」",
    ),
    "meeting.time": (
        "“An epoch takes {value} ms instead of {base} ms, {factor} times as long.”",
        "「1エポックの時間は{base} msから{value} ms、{factor}倍になります。」",
    ),
    "meeting.generated": (
        "“The graph is generated in the shape of a real one; the score on our data is still to be measured.”",
        "「グラフは実データに似せて生成したものです。当社のデータでのスコアはこれから測ります。」",
    ),
}
