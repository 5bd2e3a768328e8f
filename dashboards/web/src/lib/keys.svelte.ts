/** Single keys: never inside inputs, never with a modifier, and off where somebody wants it so. */

const KEY = "gradwarden.letters";

class Keys {
  /** Whether single letters do anything (WCAG 2.1.4); kept in this browser. */
  letters = $state(true);

  constructor() {
    try {
      this.letters = localStorage.getItem(KEY) !== "off";
    } catch {
      // Storage may be forbidden; the letters are then on.
    }
  }

  set(on: boolean): void {
    this.letters = on;
    try {
      if (on) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, "off");
    } catch {
      // The choice ends with the page.
    }
  }
}

export const keys = new Keys();

/**
 * A `keydown` handler: calls what `map` has under the key, and nothing in a field, in an open
 * dialog or beside a modifier.
 */
export function hotkeys(map: Record<string, (event: KeyboardEvent) => void>) {
  return (event: KeyboardEvent): void => {
    const target = event.target as HTMLElement;
    if (event.metaKey || event.ctrlKey || event.altKey || event.defaultPrevented) return;
    if (target.isContentEditable || /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName)) return;
    if (document.querySelector("dialog[open]")) return;
    if (event.key.length === 1 && !keys.letters) return;
    map[event.key]?.(event);
  };
}

/** Moves the focus to the next (1) or previous (-1) link or button marked `data-row`. */
export function step(by: 1 | -1): void {
  const rows = [...document.querySelectorAll<HTMLElement>("[data-row]")];
  const at = rows.findIndex((row) => row === document.activeElement || row.contains(document.activeElement));
  rows[Math.max(0, Math.min(rows.length - 1, at + by))]?.focus();
}
