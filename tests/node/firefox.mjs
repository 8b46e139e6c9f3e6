// The chat page in Firefox: node firefox.mjs URL PATH_OF_FIREFOX PATH_OF_IMAGE. Prints what it saw, as JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import puppeteer from "puppeteer-core";

const [url, executablePath, image] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const browser = await puppeteer.launch({ browser: "firefox", executablePath, defaultViewport: { width: 1280, height: 800 } });
const got = { problems: [] };

try {
  got.browser = await browser.version();
  const page = await browser.newPage();
  page.setDefaultTimeout(60_000);
  page.on("console", (message) => ["error", "warn"].includes(message.type()) && got.problems.push(message.text()));
  page.on("pageerror", (error) => got.problems.push(error.message));
  const text = (selector) => page.$eval(selector, (element) => element.textContent);
  const open = async () => {
    await page.goto(`${url}/`);
    await page.waitForSelector("#model option");
  };

  await open();
  await (await page.$("#files")).uploadFile(image);
  await page.waitForSelector("#images img");
  await page.type("#question", "Describe this image.");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".answer[aria-busy=false]");
  got.answer = await text(".answer .text");
  got.cost = await text(".cost");
  got.violations = await page.evaluate(`${axe}; axe.run().then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes[0].html]))`);

  await open();
  await page.waitForSelector(".conversation .open");
  await page.click(".conversation .open");
  await page.waitForSelector(".answer .text");
  got.kept = await text(".answer .text");
  got.image = await page.$eval(".question img", (element) => element.decode().then(() => element.naturalWidth));
} finally {
  await browser.close();
}
console.log(JSON.stringify(got));
