/** The view is the URL. Pure: text in, state out, and back; unknown keys are kept. */

export type Metric =
  | "l2" | "rms" | "absmax" | "zero" | "tiny" | "nan" | "update_ratio" | "weight_l2";
export type Mode = "abs" | "base";

export type Scale = "log" | "lin";

export interface RunView {
  metric: Metric;
  mode: Mode;
  /** Absolute step range; null follows the run. */
  range: [number, number] | null;
  /** "auto", "all", "none", or the folded blocks by name. */
  fold: "auto" | "all" | "none" | string[];
  /** Index of the selected parameter, or null. */
  row: number | null;
  /** Steps, first and last, that are compared with those around them. */
  region: [number, number] | null;
  /** Another run whose lines are drawn beside this one's. */
  other: string | null;
  /** Of all charts together, or of some by their key; the others have their own. */
  scale: Scale | Record<string, Scale>;
}

/** The scale of one chart. */
export function scaleOf(view: RunView, key: string, own: Scale): Scale {
  return typeof view.scale === "string" ? view.scale : (view.scale[key] ?? own);
}

function scales(text: string): RunView["scale"] {
  if (text === "log" || text === "lin") return text;
  const known = text.split(",").map((one) => /^(.+):(log|lin)$/.exec(one)).filter((found) => found !== null);
  return Object.fromEntries(known.map(([, key, scale]) => [key, scale as Scale]));
}

export const METRICS: Record<Metric, { label: string; unit: string }> = {
  l2: { label: "gradient L2 norm", unit: "L2" },
  rms: { label: "gradient RMS", unit: "RMS" },
  absmax: { label: "largest |gradient|", unit: "max" },
  zero: { label: "zero elements", unit: "zeros" },
  tiny: { label: "elements below 1e-8", unit: "tiny" },
  nan: { label: "NaN elements", unit: "NaNs" },
  update_ratio: { label: "update / weight norm", unit: "ratio" },
  weight_l2: { label: "weight L2 norm", unit: "L2" },
};

function integer(text: string | null): number | null {
  return text !== null && /^\d{1,15}$/.test(text) ? Number(text) : null;
}

function pair(text: string | null): [number, number] | null {
  const [a, b] = (text ?? "").split("-").map(integer);
  return a !== null && b !== null && a !== undefined && b !== undefined && a <= b ? [a, b] : null;
}

export function parseRunView(search: string): RunView {
  const q = new URLSearchParams(search);
  const metric = q.get("m") ?? "l2";
  const from = integer(q.get("from"));
  const to = integer(q.get("to"));
  const fold = q.get("fold") ?? "auto";
  return {
    metric: metric in METRICS ? (metric as Metric) : "l2",
    mode: q.get("mode") === "base" ? "base" : "abs",
    range: from !== null && to !== null && to > from ? [from, to] : null,
    fold: fold === "auto" || fold === "all" || fold === "none" ? fold : fold.split(","),
    row: integer(q.get("row")),
    region: pair(q.get("diff")),
    other: q.get("cmp") || null,
    scale: scales(q.get("y") ?? ""),
  };
}

/** The query that says `view`, defaults left out, keys of others untouched. */
export function writeRunView(search: string, view: RunView): string {
  const q = new URLSearchParams(search);
  const put = (key: string, value: string | null) =>
    value === null ? q.delete(key) : q.set(key, value);
  put("m", view.metric === "l2" ? null : view.metric);
  put("mode", view.mode === "abs" ? null : view.mode);
  put("from", view.range ? String(Math.round(view.range[0])) : null);
  put("to", view.range ? String(Math.round(view.range[1])) : null);
  put("fold", view.fold === "auto" ? null : String(view.fold));
  put("row", view.row === null ? null : String(view.row));
  put("diff", view.region && view.region.map(Math.round).join("-"));
  put("cmp", view.other);
  const some = typeof view.scale === "string" ? view.scale : Object.entries(view.scale).map((one) => one.join(":")).join();
  put("y", some || null);
  const text = q.toString();
  return text ? `?${text}` : "";
}

/** Zoom `range` around `centre` by `factor`, held inside `bounds`; never under four steps. */
export function zoom(
  range: [number, number],
  bounds: [number, number],
  factor: number,
  centre = (range[0] + range[1]) / 2,
): [number, number] {
  const from = centre - (centre - range[0]) * factor;
  const to = centre + (range[1] - centre) * factor;
  const width = Math.min(Math.max(to - from, 4), bounds[1] - bounds[0]);
  return hold([from, from + width], bounds);
}

/** Move `range` inside `bounds` without changing its width. */
export function hold(range: [number, number], bounds: [number, number]): [number, number] {
  const width = Math.min(range[1] - range[0], bounds[1] - bounds[0]);
  const from = Math.min(Math.max(range[0], bounds[0]), bounds[1] - width);
  return [from, from + width];
}
