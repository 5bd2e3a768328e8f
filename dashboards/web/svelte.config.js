import { vitePreprocess } from "@sveltejs/vite-plugin-svelte";

// Runes everywhere: one component in the old mode would pull the old runtime in.
export default { preprocess: vitePreprocess(), compilerOptions: { runes: true } };
