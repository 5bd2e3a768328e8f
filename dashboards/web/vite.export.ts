// The page of `gradwarden export --format html`: the dashboard's components in one file that
// fetches nothing. What reaches the service in the dashboard is another module here.
import { existsSync } from "node:fs";
import { basename, join } from "node:path";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Plugin } from "vite";

const HERE = import.meta.dirname;

/** A module of src/lib that has a namesake in src/export is that one. */
function kept(): Plugin {
  return {
    name: "kept",
    enforce: "pre",
    async resolveId(source, importer, options) {
      const found = await this.resolve(source, importer, { ...options, skipSelf: true });
      const own = found && join(HERE, "src/export", basename(found.id));
      return found?.id.startsWith(join(HERE, "src/lib")) && existsSync(own!) ? own : found;
    },
  };
}

/** Script and style go into the page itself. */
function inline(): Plugin {
  return {
    name: "inline",
    enforce: "post",
    generateBundle(_, bundle) {
      const parts = Object.values(bundle);
      const page = parts.find((one) => one.fileName === "export.html");
      if (page?.type !== "asset") throw new Error("no export.html was built");
      let text = String(page.source);
      for (const part of parts) {
        if (part === page) continue;
        const code = part.type === "chunk" ? part.code.trim().replaceAll("</script", "<\\/script") : String(part.source);
        const put = part.type === "chunk" ? `<script type="module">${code}</script>` : `<style>${code}</style>`;
        const tag = new RegExp(`\\s*<(?:script|link)[^>]*/${part.fileName}"[^>]*>(?:</script>)?`);
        if (!tag.test(text)) throw new Error(`${part.fileName} is not asked for by the page`);
        // In the body, behind the data that the script reads.
        text = part.type === "chunk" ? text.replace(tag, "").replace("</body>", () => `${put}</body>`) : text.replace(tag, () => put);
        delete bundle[part.fileName];
      }
      page.source = text;
    },
  };
}

export default defineConfig({
  plugins: [kept(), svelte(), inline()],
  publicDir: false,
  build: {
    target: "es2022",
    emptyOutDir: false,
    minify: "terser",
    cssCodeSplit: false,
    modulePreload: false,
    rollupOptions: { input: "export.html", output: { inlineDynamicImports: true } },
    terserOptions: { module: true, compress: { passes: 3, pure_getters: true } },
  },
});
