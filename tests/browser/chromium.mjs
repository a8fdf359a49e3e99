// How Chromium is started here: one of known version, without anything of the machine's.
import { fileURLToPath } from "node:url";
import puppeteer from "puppeteer-core";

const pinned = process.platform === "linux" && process.arch === "x64";

// Where the pinned one is, if there is one for this machine.
export const unpacked = pinned ? fileURLToPath(new URL("node_modules/.chromium", import.meta.url)) : undefined;

const found = unpacked
  ? {
      executablePath: `${unpacked}/chromium`,
      env: { ...process.env, LD_LIBRARY_PATH: `${unpacked}/al2023/lib`, FONTCONFIG_PATH: `${unpacked}/fonts` },
    }
  : { executablePath: "chromium" };

export function launch(userDataDir) {
  return puppeteer.launch({
    ...found,
    userDataDir,
    // It ends when this pipe does, so also when we are killed.
    pipe: true,
    // Tests may run as root, which Chromium's sandbox refuses. Nothing else differs from a user's browser.
    args: ["--no-sandbox"],
    headless: "shell",
  });
}
