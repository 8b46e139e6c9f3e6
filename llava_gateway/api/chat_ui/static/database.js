// Two stores of objects with an `id`, "conversations" and "summaries": in the browser's IndexedDB, or in memory if the browser refuses it.

const NAME = "llava-gateway";
const STORES = ["conversations", "summaries"];

export async function openDatabase() {
  try {
    return new BrowserDatabase(await openIndexedDb());
  } catch {
    return new MemoryDatabase();
  }
}

function openIndexedDb() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => STORES.forEach((name) => request.result.createObjectStore(name, { keyPath: "id" }));
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => reject(request.error);
  });
}

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

class BrowserDatabase {
  isKept = true; // whether the objects outlive the page

  constructor(database) {
    this.database = database;
  }

  // Calls `work` with the two stores in one transaction, and returns its result when all changes are stored. Other tabs wait meanwhile.
  // Throws an Error, and changes nothing, if the space is not enough.
  async change(work) {
    const transaction = this.database.transaction(STORES, "readwrite");
    const done = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error ?? new Error("The transaction was aborted."));
    });
    done.catch(() => {}); // the caller gets this error below
    const value = await work(...STORES.map((name) => new BrowserStore(transaction.objectStore(name))));
    await done;
    return value;
  }
}

class BrowserStore {
  constructor(store) {
    this.store = store;
  }

  get = (id) => result(this.store.get(id));
  all = () => result(this.store.getAll());
  put = (object) => result(this.store.put(object));
  delete = (id) => result(this.store.delete(id));
  clear = () => result(this.store.clear());
}

class MemoryDatabase {
  isKept = false;
  stores = STORES.map(() => new MemoryStore());

  async change(work) {
    return await work(...this.stores);
  }
}

class MemoryStore {
  objects = new Map();

  get = async (id) => this.objects.get(id);
  all = async () => [...this.objects.values()];
  put = async (object) => this.objects.set(object.id, structuredClone(object));
  delete = async (id) => this.objects.delete(id);
  clear = async () => this.objects.clear();
}
