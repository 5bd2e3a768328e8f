/** Objectives in words and figures that fit a table. */

import type { BurnFace, SloFace } from "./schema";
import { num } from "./api";
import * as f from "./format";

/** From calm to urgent. */
export const WORDS = ["Acceptable", "Increasing", "Recovering", "Critical"] as const;
export type Word = (typeof WORDS)[number];

/** "99.9 %"; as many digits as the target has, so that 99.95 % is never shown as met by rounding. */
export function percent(share: number | null, digits = 2): string {
  if (share === null) return "–";
  const cut = Math.floor(share * 100 * 10 ** digits + 1e-9) / 10 ** digits;
  return `${Number(cut.toFixed(digits))} %`;
}

/** The pair of windows that says most: the most urgent word, then the highest rate. */
export function loudest(burn: BurnFace[]): BurnFace | null {
  const rank = (one: BurnFace) => WORDS.indexOf(one.word) * 1e9 + Math.min(1e8, num(one.long) ?? 0);
  return [...burn].sort((a, b) => rank(b) - rank(a))[0] ?? null;
}

/** "1 h / 5 m: 22x / 16x, limit 14.4". */
export function rates(one: BurnFace): string {
  const rate = (value: BurnFace["long"]) => (value === null ? "–" : `${f.value(num(value))}×`);
  return `${f.age(one.long_s)} / ${f.age(one.short_s)}: ${rate(one.long)} / ${rate(one.short)}, limit ${f.value(one.limit)}`;
}

/** Firing first, then by how little is left; objectives without data stand last. */
export function byNeed(a: SloFace, b: SloFace): number {
  const need = (one: SloFace) => (one.enough_data && one.budget_left !== null ? one.budget_left : 2);
  return b.alerts.length - a.alerts.length || need(a) - need(b) || a.name.localeCompare(b.name);
}
