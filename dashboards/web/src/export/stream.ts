/** There are no news in a file: everything is looked at once. */
export type { News } from "../lib/stream";

export function follow(_project: string | null, _topic: string, _ms: number, tick: () => Promise<void> | void): () => void {
  void tick();
  return () => {};
}
