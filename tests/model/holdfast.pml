/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The protocol of a pair, for SPIN: two hosts, the sessions between them, the witness, and faults.
 *
 * It follows appliance/decide.py, moves.py, resync.py and starter.py function by function; the names are theirs.
 * docs/model.md says what is left out and why that is sound. One option of the loop in Host() is one event that a
 * host handles, whole: `step` is atomic there too.
 *
 * -DFAULTS=n: at most n faults, of the kinds that -DCRASH (a host, or its service), -DSTALL (a service stands still),
 * -DCUT (all links), -DWITNESS (it is away), -DKILL (a QEMU) and -DBREAK (replication, for a cause on one host) allow.
 * All is repaired some time. -DMOVES=n: at most n switchovers are ordered. -DBUG_...: a defect that must be found.
 */

#ifndef FAULTS
#define FAULTS 0
#endif
#ifndef MOVES
#define MOVES 0
#endif
#ifndef WAY
#define WAY 8               /* messages under way in each direction, at most */
#endif
#define TERMS 12            /* no term ever gets that high: checked */

/* Phases, in an order that makes the sets of core.py ranges. */
#define DEAD      0         /* the host or its service crashed */
#define WAITING   1
#define FAILED    2
#define YIELDED   3
#define STARTING  4
#define SOLO      5
#define SYNCING   6
#define PROTECTED 7
#define TAKING    8
#define FENCING   9
#define HANDOVER  10
#define HANDED    11
#define JOINING   12
#define RECEIVING 13
#define STANDBY   14
#define ASKING    15
#define in_silent(p)   ((p) >= WAITING && (p) <= STARTING)
#define in_speaking(p) ((p) >= SOLO && (p) <= PROTECTED)
#define in_claiming(p) ((p) >= SOLO && (p) <= HANDOVER)
#define in_running(p)  ((p) >= STARTING && (p) <= HANDOVER)
#define in_replica(p)  ((p) >= JOINING && (p) <= STANDBY)
#define in_lost(p)     ((p) == WAITING || (p) == FAILED || (p) == JOINING)

/* Roles. */
#define NONE    0
#define PRIMARY 1
#define BACKUP  2

/* What a host was told to do and has not done yet. */
#define START_VM      1
#define START_REPLICA 2
#define TAKE_OVER     3
#define HAND_OVER     4

/* Messages: a phase (STATE), or one of these. */
#define SYNC   16
#define PART   17           /* half an epoch */
#define COMMIT 18           /* the other half */
#define ACK    19

/* A host's decisions: core.State. */
byte phase[2];
byte term[2];
byte last[2];
bit primary[2];             /* ASKING: from a phase in which it spoke */
byte wanted[2];             /* a term; 0: none */
byte wanted_role[2];
bit retry[2];
bit word[2];                /* needs_word */
bit doubt[2];               /* in_doubt */
bit next_granted[2];        /* HANDED: the arbiter granted the term that the peer takes without this host's word */
bit up[2];                  /* peer_up: this end of the session stands */
bit joining[2];             /* the other end stands, this one is about to */
byte peer[2];               /* its phase as last told; 0: not known */
byte peer_term[2];
byte peer_last[2];
byte peer_role[2];
bit peer_settled[2];
byte peer_copy[2];
byte copy[2];               /* which replica this is, of those that the host began */

/* Its world. */
byte disk_term[2];
byte disk_role[2];
chan writes[2] = [2] of { byte, byte };   /* terms and roles on their way to disk */
bit stalled[2];
byte job[2];
byte vm[2];                 /* 1: it runs; 2: paused for good */
byte replica[2];            /* 1: waits; 2: a copy began; 3: whole */
bit part[2];                /* half an epoch has arrived */
bit torn[2];                /* half an epoch was applied */
bit free[2];                /* output goes out as it comes */
bit hold[2];                /* output goes out as epochs commit, under the lease */
bit lease[2];               /* the lease may still last */
byte sync[2];               /* replication: 1: ordered; 2: the first copy is under way; 3: epochs */
bit flight[2];              /* an epoch is not acknowledged */
byte asked[2];              /* the term asked for, on its way to the witness */
byte granted[2];            /* the grant, on its way back */

/* One write of a client, as good as any: where it is, and whether the client has heard of it. */
bit wrote[2];               /* the VM here has it */
bit kept[2];                /* the replica here has it: whole epochs only */
bit flying[2];              /* the epoch in flight has it */
bit sent[2];                /* some epoch of this replication had it */
bit due[2];                 /* committed, not yet released */
bit told;
bit committed;              /* it was in an epoch that a replica took whole */
bit unshared;               /* it was told by a host alone, and was in no committed epoch since */

/* Links, witness, faults. */
chan to[2] = [WAY] of { byte, byte, byte };   /* phase or kind; term; what goes with it */
bit wire = 1;
bit witness = 1;
byte held;                  /* the highest term it granted */
byte holder;                /* 2: nobody */
#define NOBODY 2
byte faults_left = FAULTS;
byte moves_left = MOVES;
bit crashed;                /* a host crashed, or a QEMU died */
byte reign;                 /* the highest term under which a VM spoke */
bit ruler;

hidden byte new_term;
hidden byte new_role;
hidden byte kind;
hidden byte its_term;
hidden byte what;
hidden byte tell;
hidden byte current;

#define you (1 - me)
#define home (me == 0)
#define copy_here(h) ((vm[h] && wrote[h]) || (replica[h] == 3 && kept[h]))
#define any_copy(h)  (vm[h] || replica[h] == 3)
#define told_of(h) (last[h] + 4 * role_of(h) + (!len(writes[h]) -> 16 : 0) + 32 * copy[h])
#define speaks(h)    (free[h] || (hold[h] && vm[h] && lease[h]))
#define role_of(h) (in_running(phase[h]) || (phase[h] == ASKING && primary[h]) -> PRIMARY : \
                    (in_replica(phase[h]) || phase[h] == ASKING -> BACKUP : NONE))

/* --- what must never break (design section 4), looked at after each event --- */

inline judge() {
    assert(!(speaks(0) && speaks(1)));                                  /* one speaker */
    assert(!(free[0] && replica[1] == 3 && term[1] >= term[0]));        /* free speech beside a whole replica */
    assert(!(free[1] && replica[0] == 3 && term[0] >= term[1]));
    assert(term[me] < TERMS)
}

/* A copy at this host goes. `fault`: by a crash, not by a decision. */
inline lose_copy(fault) {
    if
    :: told && copy_here(me) && !copy_here(you) ->
        if
        :: fault && (unshared || !any_copy(you)) -> told = 0; unshared = 0  /* alone, or both copies lost by faults */
        :: !fault && crashed -> told = 0; unshared = 0         /* the other had said that it goes on, and crashed */
        :: !fault && !crashed -> assert(false)                 /* a decision threw the only good copy away */
        :: else
        fi
    :: else
    fi;
    vm[me] = 0; replica[me] = 0; wrote[me] = 0; kept[me] = 0; part[me] = 0; torn[me] = 0
}

/* --- effects --- */

inline send(k, t, w) {
    if
    :: up[me] && (up[you] || joining[you]) -> to[you]!k, t, w
    :: else
    fi
}

inline speak() {
    assert(vm[me]);
    assert(disk_term[me] == term[me] && disk_role[me] == PRIMARY);              /* remembered */
    assert(term[me] > reign || (term[me] == reign && ruler == me));             /* older terms are refused */
    assert(!told || wrote[me]);                                                 /* nothing acknowledged is lost */
    reign = term[me]; ruler = me;
    vm[me] = 1; free[me] = 1; hold[me] = 0; due[me] = 0
}

inline release() {              /* under protection: what an epoch that is committed let the VM say */
    assert(committed);                                                          /* output commit */
    told = 1
}

inline shut() { free[me] = 0; hold[me] = 0; due[me] = 0 }

inline stop_sync() {
    sync[me] = 0; flight[me] = 0; flying[me] = 0; sent[me] = 0;
    if
    :: job[me] == HAND_OVER -> job[me] = 0; vm[me] = 1
    :: else
    fi
}

inline stop_vm() {
    shut(); stop_sync(); lose_copy(0); job[me] = 0
}

inline enter(p) {
    phase[me] = p; retry[me] = 0; wanted[me] = 0; wanted_role[me] = 0; doubt[me] = 0; next_granted[me] = 0; primary[me] = 0; tell = 1;
    if
    :: p != ASKING && p != TAKING && p != FENCING -> word[me] = 0
    :: else
    fi
}

inline persist(t, r) {
    new_term = t; new_role = r;
    wanted[me] = new_term; wanted_role[me] = new_role;
    writes[me]!new_term, new_role
}

inline claim() {
    if
    :: peer_term[me] > term[me] -> persist(peer_term[me] + 1, PRIMARY)
    :: else -> persist(term[me] + 1, PRIMARY)
    fi
}

/* --- starter.py --- */

inline who_starts() {
    if
    :: phase[me] == WAITING && peer[me] ->
        new_term = 0; new_role = 0;
        if
        :: in_running(peer[me]) ->
            if
            :: peer_term[me] >= term[me] && in_speaking(peer[me]) -> new_term = peer_term[me]; new_role = BACKUP
#ifdef BUG_OLD_TERM_JOINED
            :: peer_term[me] < term[me] && in_speaking(peer[me]) -> new_term = peer_term[me]; new_role = BACKUP
#endif
            :: else
            fi
        :: peer[me] == WAITING && peer_settled[me] &&
           term[me] * 4 + (last[me] == PRIMARY -> 2 : 0) + (home -> 1 : 0) >
              peer_term[me] * 4 + (peer_last[me] == PRIMARY -> 2 : 0) + (home -> 0 : 1) ->
            new_term = (term[me] > peer_term[me] -> term[me] : peer_term[me]) + 1; new_role = PRIMARY
        :: else
        fi;
        if
        :: new_term == wanted[me] && new_role == wanted_role[me]
        :: else ->
            wanted[me] = 0; wanted_role[me] = 0;
            if
            :: new_term && !len(writes[me]) -> persist(new_term, new_role)
            :: else
            fi
        fi
    :: else
    fi
}

/* --- resync.py --- */

inline solo_hears() {
    if
    :: peer[me] == RECEIVING && peer_term[me] == term[me] -> enter(SYNCING); sync[me] = 1
    :: !(peer[me] == RECEIVING && peer_term[me] == term[me]) &&
       peer_term[me] > term[me] && !in_claiming(peer[me]) && !wanted[me] -> claim()
    :: else
    fi
}

inline backup_lost() { enter(SOLO); stop_sync(); speak() }

/* --- moves.py --- */

inline give_up() { enter(WAITING); stop_vm() }

inline handed_hears() {
    if
#ifndef BUG_NEVER_GIVES_UP
    :: !wanted[me] && peer[me] == ASKING && peer_role[me] == PRIMARY && peer_term[me] > term[me] -> give_up()
    :: wanted[me] || peer[me] == STANDBY ||
       (peer[me] == ASKING && !(peer_role[me] == PRIMARY && peer_term[me] > term[me]))
#else
    :: wanted[me] || peer[me] == STANDBY || peer[me] == ASKING
#endif
    :: else ->
        if
        :: in_claiming(peer[me]) ->
            if
            :: peer[me] == FENCING && phase[me] == HANDED -> enter(YIELDED)
            :: !(peer[me] == FENCING && phase[me] == HANDED) && in_speaking(peer[me]) && !retry[me] -> retry[me] = 1
            :: else
            fi
        :: !in_claiming(peer[me]) && doubt[me] && peer_term[me] > term[me] -> give_up()
        :: else -> claim()
        fi
    fi
}

#define asks(h) (!wanted[h] && (phase[h] == ASKING || (!up[h] && (phase[h] == HANDED || (phase[h] == FENCING && word[h])))))

/* --- decide.py --- */

inline give_way() {             /* both claim the VM: the higher term wins; of equals, the home host */
    if
    :: role_of(me) == PRIMARY && in_claiming(peer[me]) &&
       (peer_term[me] > term[me] || (peer_term[me] == term[me] && !home)) -> give_up()
    :: else
    fi
}

inline look_again() {           /* SOLO just now */
    if
    :: peer[me] -> give_way();
        if
        :: phase[me] == SOLO -> solo_hears()
        :: else -> who_starts()
        fi
    :: else
    fi
}

inline speak_alone() { enter(SOLO); speak(); look_again() }

#ifdef BUG_NO_LEASE_WAIT
#define must_wait (false)
#else
#define must_wait (!up[me] && lease[you])
#endif

inline vm_running() {
    if
    :: (phase[me] == TAKING || phase[me] == FENCING) ->
        if
        :: word[me] && !in_silent(peer[me]) -> enter(FENCING)
        :: else ->
            if
            :: must_wait -> enter(FENCING); retry[me] = 1
#ifndef BUG_OLD_TERM
            :: !must_wait && peer_term[me] > term[me] -> enter(FENCING); claim()
#endif
            :: else -> speak_alone()
            fi
        fi
    :: phase[me] == STARTING -> speak_alone()
    :: else
    fi
}

inline drop_replica() { enter(WAITING); stop_vm(); who_starts() }

inline whole_replica_hears() {
    if
    :: peer_term[me] > term[me] -> drop_replica()
    :: else ->
        if
        :: wanted[me]
        :: else ->
            if
            :: peer[me] == ASKING && peer_role[me] == PRIMARY -> drop_replica()
            :: phase[me] == ASKING && in_speaking(peer[me]) -> enter(STANDBY)
            :: in_silent(peer[me]) || peer[me] == HANDED ->
                enter(ASKING);
                word[me] = (peer[me] == HANDED);
                persist(term[me] + 1, PRIMARY)
            :: else
            fi
        fi
    fi
}

inline peer_says() {
    give_way();
    if
    :: phase[me] == WAITING -> who_starts()
    :: phase[me] == SOLO -> solo_hears()
    :: phase[me] == SYNCING && in_lost(peer[me]) -> backup_lost()
    :: (phase[me] == PROTECTED || phase[me] == HANDOVER) && (in_lost(peer[me]) || peer[me] == RECEIVING) ->
        backup_lost(); solo_hears()
    :: phase[me] == HANDED || phase[me] == YIELDED -> handed_hears()
    :: phase[me] == FENCING && word[me] && in_silent(peer[me]) && !wanted[me] ->
        vm_running()
    :: phase[me] == ASKING && primary[me] ->
        if
#ifdef BUG_SPEAK_BESIDE_REPLICA
        :: !wanted[me] && (in_lost(peer[me]) || peer[me] == RECEIVING || peer[me] == STANDBY) ->
#else
        :: !wanted[me] && (in_lost(peer[me]) || peer[me] == RECEIVING) ->
#endif
            if
#ifndef BUG_OLD_TERM
            :: peer_term[me] > term[me] -> claim()      /* the peer spoke under a newer one and lost it */
#endif
            :: else -> enter(SOLO); speak(); solo_hears()
            fi
        :: else
        fi
    :: (phase[me] == ASKING && !primary[me]) || phase[me] == STANDBY -> whole_replica_hears()
    :: (phase[me] == JOINING || phase[me] == RECEIVING) && (!in_speaking(peer[me]) || peer_term[me] != term[me]) ->
        drop_replica()
    :: else
    fi
}

inline peer_silent() {
    if
    :: phase[me] == SYNCING || phase[me] == PROTECTED || phase[me] == HANDOVER ->
        enter(ASKING); primary[me] = 1; shut(); stop_sync()
    :: (phase[me] == STANDBY || (phase[me] == ASKING && !primary[me])) && !wanted[me] -> enter(ASKING)
    :: phase[me] == JOINING || phase[me] == RECEIVING -> enter(WAITING); stop_vm()
    :: phase[me] == YIELDED -> doubt[me] = 1
    :: else
    fi
}

inline persisted() {
    current = (wanted[me] == new_term && wanted_role[me] == new_role);
    term[me] = new_term; last[me] = new_role;
    if
    :: !current -> tell = 1; who_starts()
    :: else ->
        wanted[me] = 0; wanted_role[me] = 0;
        if
        :: phase[me] == WAITING && new_role == PRIMARY -> enter(STARTING); job[me] = START_VM
        :: phase[me] == WAITING && new_role == BACKUP && up[me] -> enter(JOINING); job[me] = START_REPLICA
        :: phase[me] == WAITING && new_role == BACKUP && !up[me] -> tell = 1
        :: phase[me] == ASKING && !primary[me] -> enter(TAKING); job[me] = TAKE_OVER
        :: phase[me] == SOLO || (phase[me] == ASKING && primary[me]) || phase[me] == HANDED || phase[me] == YIELDED ->
            enter(SOLO); speak()
        :: phase[me] == FENCING -> word[me] = 0; vm_running()
        :: else
        fi
    fi
}

inline vm_lost() {
    if
    :: phase[me] == WAITING || phase[me] == FAILED
    :: phase[me] == RECEIVING || phase[me] == STANDBY -> enter(JOINING); stop_vm(); job[me] = START_REPLICA
    :: phase[me] == PROTECTED || phase[me] == HANDOVER || phase[me] == HANDED || phase[me] == YIELDED ->
        enter(WAITING); stop_vm();
#ifndef BUG_NOT_LOOKED_AGAIN
        who_starts()
#endif
    :: else -> enter(FAILED); stop_vm(); retry[me] = 1
    fi
}

inline tick() {
    retry[me] = 0;
    if
    :: phase[me] == FAILED -> enter(WAITING); who_starts()
    :: phase[me] == FENCING && !word[me] -> vm_running()
    :: (phase[me] == HANDED || phase[me] == YIELDED) && in_speaking(peer[me]) -> give_up(); who_starts()
    :: !(phase[me] == FAILED || (phase[me] == FENCING && !word[me]) ||
         ((phase[me] == HANDED || phase[me] == YIELDED) && in_speaking(peer[me])) ||
         phase[me] == PROTECTED) && peer[me] -> peer_says()
    :: else
    fi
}

/* --- one host --- */

inline begin() { tell = 0 }

inline done() {
    if
    :: tell -> send(phase[me], term[me], told_of(me))
    :: else
    fi;
    judge()
}

inline message() {
    if
    :: kind < SYNC ->
        peer[me] = kind; peer_term[me] = its_term;
        peer_last[me] = what & 3; peer_role[me] = (what >> 2) & 3; peer_settled[me] = (what >> 4) & 1; peer_copy[me] = what >> 5;
        peer_says()
    :: kind >= SYNC && its_term != term[me]             /* the older term is refused */
#ifdef BUG_STALE_COPY
    :: kind == SYNC && its_term == term[me] && replica[me] ->
#else
    :: kind == SYNC && its_term == term[me] && replica[me] && what == copy[me] ->
#endif
        if
        :: phase[me] == STANDBY -> enter(RECEIVING)
        :: else
        fi;
        replica[me] = 2; kept[me] = 0; part[me] = 0
    :: kind == PART && its_term == term[me] && replica[me] >= 2 ->
        part[me] = 1;
#ifdef BUG_HALF_IS_WHOLE
        if
        :: phase[me] == RECEIVING -> enter(STANDBY)
        :: else
        fi
#endif
    :: kind == COMMIT && its_term == term[me] && replica[me] >= 2 ->
        part[me] = 0; kept[me] = what; unshared = unshared && !what; committed = committed || what;
        if
        :: replica[me] == 2 && phase[me] == RECEIVING ->
            enter(STANDBY);
            send(STANDBY, term[me], told_of(me)); tell = 0
        :: else
        fi;
        replica[me] = 3;
        send(ACK, term[me], 0)
    :: kind == ACK && its_term == term[me] && flight[me] ->
        flight[me] = 0;
        due[me] = flying[me] && hold[me]; flying[me] = 0;
        if
        :: phase[me] == SYNCING -> enter(PROTECTED)
        :: else
        fi
    :: else
    fi
}

#define alive   (phase[me] && !stalled[me])
#define room    (len(to[you]) <= WAY - 2 && len(writes[me]) < 2)
#define can     (alive && room)

inline forget_session() {
    up[me] = 0; joining[me] = 0; peer[me] = 0; peer_term[me] = 0; peer_last[me] = 0; peer_role[me] = 0; peer_settled[me] = 0; peer_copy[me] = 0;
    do
    :: len(to[me]) -> to[me]?_, _, _
    :: else -> break
    od
}

inline crash() {
    faults_left--; crashed = 1;
    do
    :: len(writes[me]) -> writes[me]?_, _
    :: else -> break
    od;
    forget_session();
    lose_copy(1); shut(); job[me] = 0;
    sync[me] = 0; flight[me] = 0; flying[me] = 0; sent[me] = 0;
    phase[me] = DEAD; term[me] = 0; last[me] = 0; primary[me] = 0; wanted[me] = 0; wanted_role[me] = 0;
    retry[me] = 0; word[me] = 0; doubt[me] = 0; next_granted[me] = 0; lease[me] = 0; granted[me] = 0; stalled[me] = 0; copy[me] = 0;
    judge()
}

proctype Host(bit me) {
end:
    do
    /* what comes in */
    :: d_step { can && up[me] && len(to[me]) -> begin(); to[me]?kind, its_term, what; message(); done(); what = 0 }
    :: d_step { can && len(writes[me]) -> begin();
        writes[me]?new_term, new_role;
        assert(new_term >= disk_term[me]);                              /* no term is forgotten */
        disk_term[me] = new_term; disk_role[me] = new_role;
        persisted(); done() }
    :: d_step { can && granted[me] -> begin();
        if
#ifdef BUG_TERM_SKIPPED
        :: asks(me) && granted[me] > term[me] ->
#else
#ifdef BUG_ASKED_TWICE
        :: asks(me) && phase[me] == HANDED && granted[me] == term[me] + 1 && !next_granted[me] -> next_granted[me] = 1
        :: asks(me) && granted[me] > term[me] && (phase[me] != HANDED || next_granted[me]) ->
#else
        :: asks(me) && phase[me] == HANDED && granted[me] == term[me] + 1 -> next_granted[me] = 1
        :: asks(me) && granted[me] > term[me] && (phase[me] != HANDED || (next_granted[me] && granted[me] > term[me] + 1)) ->
#endif
#endif
            persist(granted[me], PRIMARY);
#ifdef BUG_SPEAK_BEFORE_PERSIST
            persisted()
#endif
        :: else
        fi;
        granted[me] = 0; done() }
    :: d_step { can && retry[me] && !(phase[me] == FENCING && !word[me] && must_wait) -> begin();
        tick(); done() }

    /* the session */
    :: d_step { can && up[me] && (!wire || !(up[you] || joining[you]) || stalled[you] || !phase[you]) -> begin();
        forget_session();
        peer_silent(); done() }
    :: d_step { can && wire && !up[0] && !up[1] && !joining[0] && !joining[1] && phase[you] && !stalled[you] -> begin();
        up[me] = 1; joining[you] = 1; next_granted[me] = 0; tell = 1; done() }
    :: d_step { can && joining[me] -> begin();
        joining[me] = 0; up[me] = 1; next_granted[me] = 0; tell = 1;
        if
        :: up[you] -> lease[0] = 1; lease[1] = 1
        :: else
        fi;
        done() }
    :: d_step { joining[me] && !up[you] -> forget_session(); judge() }
    :: d_step { lease[me] && !up[you] -> lease[me] = 0 }

    /* the witness: a question, its answer; nothing comes while it is away */
    :: d_step { alive && asks(me) && !up[me] && !asked[me] && witness ->
#ifdef BUG_TERM_SKIPPED
        asked[me] = term[me] + (phase[me] == HANDED -> 2 : 1) }
#else
        asked[me] = term[me] + (next_granted[me] -> 2 : 1) }
#endif
    :: d_step { asked[me] && !granted[me] ->
        if
        :: witness && (asked[me] > held || (asked[me] == held && (holder == me || holder == NOBODY))) ->
            held = asked[me]; holder = me;
            if
            :: phase[me] -> granted[me] = asked[me]
            :: else
            fi
#ifdef BUG_GRANT_TWICE
        :: witness && asked[me] == held && holder == you -> granted[me] = asked[me]
#endif
        :: else ->
            if
            :: phase[me] && asks(me) -> retry[me] = 1
            :: else
            fi
        fi;
        asked[me] = 0 }
    :: d_step { can && witness && in_speaking(phase[me]) && (held < term[me] || (held == term[me] && holder != me) ||
                (held > term[me] && holder == you && !up[me] && phase[me] != PROTECTED)) -> begin();
        if
        :: held > term[me] && holder == you && !up[me] && (phase[me] == SOLO || phase[me] == SYNCING) ->
            enter(ASKING); primary[me] = 1; shut(); stop_sync(); retry[me] = 1
        :: held <= term[me] -> held = term[me]; holder = me
        :: else
        fi;
        done() }
    :: d_step { alive && witness && holder == me && held > term[me] && !asks(me) && !wanted[me] && !len(writes[me]) &&
                !asked[me] && !granted[me] -> holder = NOBODY }         /* a grant that was not used is given back */

    /* what it was told to do is done */
    :: d_step { can && job[me] == START_VM -> begin();
        job[me] = 0; assert(!told); vm[me] = 1; vm_running(); done() }
    :: d_step { can && job[me] == START_REPLICA -> begin();
        job[me] = 0; replica[me] = 1; copy[me]++; assert(copy[me] < 8);
        if
        :: phase[me] == JOINING -> enter(RECEIVING)
        :: else
        fi;
        done() }
    :: d_step { can && job[me] == TAKE_OVER -> begin();
        job[me] = 0;
#ifdef BUG_PARTIAL_EPOCH
        torn[me] = part[me];
#endif
        assert(replica[me] == 3 && !torn[me]);                          /* whole epochs only */
        vm[me] = 1; replica[me] = 0; wrote[me] = kept[me]; kept[me] = 0; part[me] = 0;
        vm_running(); done() }
    :: d_step { can && job[me] == HAND_OVER && vm[me] == 2 && !flight[me] && !due[me] -> begin();
        job[me] = 0; shut(); sync[me] = 0; sent[me] = 0; enter(HANDED); done() }
    :: d_step { can && job[me] == HAND_OVER -> begin();        /* not in time */
        job[me] = 0; vm[me] = 1; enter(PROTECTED); done() }

    /* the VM, its clients, its epochs */
    :: d_step { alive && vm[me] == 1 && in_speaking(phase[me]) && !told && !wrote[0] && !wrote[1] && !kept[0] && !kept[1] ->
        wrote[me] = 1; committed = 0 }
    :: d_step { alive && free[me] && wrote[me] && !told -> told = 1; unshared = 1; judge() }
    :: d_step { alive && hold[me] && lease[me] && due[me] -> due[me] = 0; release(); judge() }
    :: d_step { can && sync[me] == 1 -> send(SYNC, term[me], peer_copy[me]); sync[me] = 2 }
    :: d_step { can && (sync[me] == 2 || (sync[me] == 3 && !flight[me] && !due[me] && vm[me] == 1 &&
                                          ((wrote[me] && !sent[me]) || job[me] == HAND_OVER))) ->
        begin();
        sync[me] = 3; free[me] = 0; hold[me] = 1; flight[me] = 1; flying[me] = wrote[me]; sent[me] = wrote[me];
        if
        :: job[me] == HAND_OVER -> vm[me] = 2
        :: else
        fi;
#ifdef BUG_RELEASE_BEFORE_COMMIT
        if
        :: wrote[me] -> release()
        :: else
        fi;
#endif
        send(PART, term[me], 0); send(COMMIT, term[me], flying[me]); done() }

    /* orders */
    :: d_step { can && moves_left && phase[me] == PROTECTED -> begin();
        moves_left--; enter(HANDOVER); job[me] = HAND_OVER; done() }

    /* faults */
#ifdef CRASH
    :: d_step { faults_left && phase[me] -> crash() }
    :: d_step { faults_left && phase[me] && len(writes[me]) -> writes[me]?disk_term[me], disk_role[me]; crash() }
    :: d_step { !phase[me] -> asked[me] = 0; phase[me] = WAITING; 
#ifdef BUG_FORGETS
        disk_term[me] = 0; disk_role[me] = NONE;
#endif
        term[me] = disk_term[me]; last[me] = disk_role[me] }
#endif
#ifdef STALL
    :: d_step { faults_left && alive -> faults_left--; stalled[me] = 1 }
    :: d_step { stalled[me] -> stalled[me] = 0 }
#endif
#ifdef CUT
    :: d_step { me == 0 && faults_left && wire -> faults_left--; wire = 0 }
    :: d_step { me == 0 && !wire -> wire = 1 }
#endif
#ifdef WITNESS
    :: d_step { me == 0 && faults_left && witness -> faults_left--; witness = 0 }
    :: d_step { me == 0 && !witness -> witness = 1 }
#endif
#ifdef KILL
    :: d_step { can && faults_left && (vm[me] || replica[me] || job[me]) -> begin();
        faults_left--; crashed = 1; lose_copy(1); shut(); vm_lost(); done() }
#endif
#ifdef BREAK
    :: d_step { can && faults_left && (phase[me] == SYNCING || phase[me] == PROTECTED || phase[me] == HANDOVER) -> begin();
        faults_left--; enter(ASKING); primary[me] = 1; shut(); stop_sync();
#ifndef BUG_OLD_WORD
        peer[me] = 0; peer_term[me] = 0; peer_last[me] = 0; peer_role[me] = 0; peer_settled[me] = 0; peer_copy[me] = 0;
#endif
        done() }
#endif
    :: d_step { me == 0 && faults_left -> faults_left = 0 }              /* no more of them */
    od
}

/* Nothing is left to happen: both hosts must have found together. */
proctype Judge() {
    timeout ->
#ifndef SAFETY_ONLY
    assert((phase[0] == PROTECTED && phase[1] == STANDBY) || (phase[1] == PROTECTED && phase[0] == STANDBY))
#else
    skip
#endif
}

init {
    atomic { phase[0] = WAITING; phase[1] = WAITING; run Host(0); run Host(1); run Judge() }
}
