/** The rows on screen: blocks in model order, folded to one line or opened to parameters. */

import type { LayerFace } from "../schema";
import type { RunView } from "../urlstate";

export interface Row {
  key: string;
  label: string;
  kind: "block" | "parameter";
  block: string;
  /** For a block that can fold. */
  folded: boolean;
  foldable: boolean;
  /** Matrix rows pooled into this one. */
  members: number[];
  parameter: LayerFace | null;
}

/** Beyond this many parameters a run opens with its blocks folded. */
export const AUTO_FOLD = 40;

/** Blocks in order of first appearance, with their parameters. */
export function blocks(layers: LayerFace[]): Map<string, LayerFace[]> {
  const out = new Map<string, LayerFace[]>();
  for (const layer of layers) {
    const name = layer.block || layer.layer || layer.name;
    const list = out.get(name);
    if (list) list.push(layer);
    else out.set(name, [layer]);
  }
  return out;
}

/** Which blocks are folded. "auto" keeps those with a non-finite value open. */
export function folded(
  layers: LayerFace[],
  fold: RunView["fold"],
  sick: ReadonlySet<number>,
): Set<string> {
  const all = [...blocks(layers)].filter(([, list]) => list.length > 1);
  if (fold === "none") return new Set();
  if (fold === "all") return new Set(all.map(([name]) => name));
  if (fold !== "auto") return new Set(fold);
  if (layers.length <= AUTO_FOLD) return new Set();
  const firstSick = all.find(([, list]) => list.some((p) => sick.has(p.i)))?.[0];
  return new Set(all.map(([name]) => name).filter((name) => name !== firstSick));
}

export function rows(
  layers: LayerFace[],
  closed: ReadonlySet<string>,
  matrixRow: ReadonlyMap<number, number>,
): Row[] {
  const out: Row[] = [];
  const at = (p: LayerFace) => matrixRow.get(p.i);
  for (const [block, list] of blocks(layers)) {
    const foldable = list.length > 1;
    if (foldable) {
      const members = list.map(at).filter((row) => row !== undefined);
      const isFolded = closed.has(block);
      out.push({
        key: `block ${block}`, label: block, kind: "block", block, folded: isFolded, foldable,
        members, parameter: null,
      });
      if (isFolded) continue;
    }
    for (const parameter of list) {
      const row = at(parameter);
      out.push({
        key: `parameter ${parameter.i}`, label: short(parameter.name, foldable ? block : ""),
        kind: "parameter", block, folded: false, foldable: false,
        members: row === undefined ? [] : [row], parameter,
      });
    }
  }
  return out;
}

/** The name without the block it stands under. */
export function short(name: string, block: string): string {
  return block && name.startsWith(`${block}.`) ? name.slice(block.length + 1) : name;
}
