package ledger

// lru is a map that knows which entry was not used for longest. Its zero value is
// not ready: see newLRU. It is not safe for use by several threads.
type lru[K comparable, V any] struct {
	at   map[K]uint32
	all  []lruEntry[K, V] // all[0] is the ring's mark: next is the oldest, prev the newest
	free uint32           // list of entries that are not used, by next; 0 is none
}

type lruEntry[K comparable, V any] struct {
	key        K
	value      V
	prev, next uint32
}

func newLRU[K comparable, V any]() *lru[K, V] {
	return &lru[K, V]{at: map[K]uint32{}, all: make([]lruEntry[K, V], 1)}
}

func (l *lru[K, V]) size() int { return len(l.at) }

// use finds the value of key and makes it the newest; nil: there is none. The
// pointer is good until the next put.
func (l *lru[K, V]) use(key K) *V {
	i := l.at[key]
	if i == 0 {
		return nil
	}
	l.unlink(i)
	l.link(i)
	return &l.all[i].value
}

// look is use, but the entry keeps its age.
func (l *lru[K, V]) look(key K) *V {
	if i := l.at[key]; i != 0 {
		return &l.all[i].value
	}
	return nil
}

// put adds a key that is not there, as the newest.
func (l *lru[K, V]) put(key K, value V) *V {
	i := l.free
	if i != 0 {
		l.free = l.all[i].next
		l.all[i] = lruEntry[K, V]{key: key, value: value}
	} else {
		i = uint32(len(l.all))
		l.all = append(l.all, lruEntry[K, V]{key: key, value: value})
	}
	l.at[key] = i
	l.link(i)
	return &l.all[i].value
}

// oldest gives the entry that was not used for longest; nil: there is none.
func (l *lru[K, V]) oldest() (K, *V) {
	e := &l.all[l.all[0].next]
	if l.all[0].next == 0 {
		return e.key, nil
	}
	return e.key, &e.value
}

func (l *lru[K, V]) drop(key K) {
	i := l.at[key]
	if i == 0 {
		return
	}
	delete(l.at, key)
	l.unlink(i)
	l.all[i] = lruEntry[K, V]{next: l.free}
	l.free = i
}

// each calls do for every entry, the oldest first; do may drop that one.
func (l *lru[K, V]) each(do func(K, *V)) {
	for i := l.all[0].next; i != 0; {
		next := l.all[i].next
		do(l.all[i].key, &l.all[i].value)
		i = next
	}
}

func (l *lru[K, V]) link(i uint32) {
	newest := l.all[0].prev
	l.all[i].prev, l.all[i].next = newest, 0
	l.all[newest].next = i
	l.all[0].prev = i
}

func (l *lru[K, V]) unlink(i uint32) {
	e := &l.all[i]
	l.all[e.prev].next = e.next
	l.all[e.next].prev = e.prev
}
