/** How numbers, steps and times are written; one place, so that they never disagree. */

const grouped = new Intl.NumberFormat("en-US");

export function step(value: number | null | undefined): string {
  return value === null || value === undefined ? "–" : grouped.format(Math.round(value));
}

/** Three significant digits; scientific below 1e-3 and from 1e5 on. */
export function value(x: number | null | undefined): string {
  if (x === null || x === undefined) return "–";
  if (Number.isNaN(x)) return "NaN";
  if (!Number.isFinite(x)) return x > 0 ? "Inf" : "-Inf";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size < 1e-3 || size >= 1e5) return x.toExponential(1).replace("e+", "e").replace(".0e", "e");
  return size >= 1000 ? grouped.format(Math.round(x)) : String(Number(x.toPrecision(3)));
}

/** "4s", "12m", "3h", "5d": the age of something, as one word. */
export function age(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s}s`;
  if (s < 5400) return `${Math.round(s / 60)}m`;
  if (s < 129_600) return `${Math.round(s / 3600)}h`;
  return `${Math.round(s / 86_400)}d`;
}

export function since(iso: string | null | undefined, now: number): string {
  if (!iso) return "–";
  const at = Date.parse(iso);
  return Number.isNaN(at) ? "–" : age((now - at) / 1000);
}

/** Absolute UTC and local time, for tooltips and copies. */
export function moment(iso: string | null | undefined): string {
  if (!iso || Number.isNaN(Date.parse(iso))) return "";
  const date = new Date(iso);
  return `${date.toISOString().replace("T", " ").slice(0, 19)} UTC (${date.toLocaleString()} local)`;
}

/** What is left of an error budget; of one that is gone, how often it was spent. */
export function budget(left: number | null | undefined): string {
  if (left === null || left === undefined) return "–";
  return left >= 0 ? `${Math.round(left * 100)} %` : `gone, ${Number((1 - left).toPrecision(2))}× spent`;
}

export function count(n: number, noun: string): string {
  return `${grouped.format(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** 12,345,678 -> "12.3M". */
export function compact(n: number): string {
  return new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 }).format(n);
}
